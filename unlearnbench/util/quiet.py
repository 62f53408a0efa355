"""Keep other libraries' notes and bars off the screen, where an error is to be one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unlearnbench.errors import CheckpointError, one_line


def quiet_hub() -> None:
    """Five lines of retries for every file of an unreachable hub, otherwise."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()


def quiet_imports() -> None:
    """Before transformers or PEFT import torchao: four lines on kernels for other GPUs, and on its
    use of torch, otherwise.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_transformers() -> None:
    """Advice for people who train, and a bar for each shard, otherwise."""
    quiet_imports()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # One line for every int8 matrix product, that inputs are cast to float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def unmoved_caches() -> Iterator[None]:
    """Where the hub's caches are stays as it is: GPTQModel's tokenizer package, which PEFT imports
    too where it is installed, sets them to folders of its own for this process and its children.
    """

    def ours() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(("HF_", "TRANSFORMERS_"))}

    before = ours()
    try:
        yield
    finally:
        for name in ours():
            if name not in before:
                del os.environ[name]
        os.environ.update(before)


@contextmanager
def muted() -> Iterator[None]:
    """Nothing reaches the screen, whatever a library or its compiled code writes; a log handler
    that it hangs on the root logger is taken off again.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    # The file descriptors, not sys.stdout: a handler made meanwhile would keep a closed file.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for saved, number in zip(kept, (1, 2), strict=True):
            os.dup2(saved, number)
            os.close(saved)
        os.close(nowhere)
        root.handlers, root.level = handlers, level


@contextmanager
def plain_errors() -> Iterator[None]:
    """A panic of compiled Rust code is an error as others are: tokenizers raises one, which is no
    ``Exception``, where a stranger's file is not as it trusts it to be.

    Raises:
        CheckpointError: in place of the panic, with its message.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"the checkpoint's tokenizer gave up: {one_line(error, 150)}; use the tokenizer that "
            "the model was trained with"
        ) from error
