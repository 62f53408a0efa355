"""Other libraries kept silent: their notes and progress bars would drown an error's one line."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unlearnbench.errors import CheckpointError, one_line


def quiet_hub() -> None:
    """Silence huggingface_hub, which prints five lines of retries for each file of a hub that it
    cannot reach, and its download bars.
    """
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()


def quiet_imports() -> None:
    """Silence torchao, before transformers or PEFT import it: it prints four lines on kernels for
    other GPUs and on its use of torch.
    """
    for name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_transformers() -> None:
    """Silence transformers' advice for people who train, its bar for each shard, and
    bitsandbytes' line for every int8 product.
    """
    quiet_imports()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


@contextmanager
def unmoved_caches() -> Iterator[None]:
    """Keep the hub's cache folders as they are set: GPTQModel's tokenizer package, which PEFT
    imports too, points them to folders of its own for this process and its children.
    """

    def ours() -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k.startswith(("HF_", "TRANSFORMERS_"))}

    before = ours()
    try:
        yield
    finally:
        for name in ours().keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def muted() -> Iterator[None]:
    """Let nothing reach the screen, whatever a library or its compiled code writes. A log handler
    that it hangs on the root logger is taken off again.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sys.stdout.flush()
    sys.stderr.flush()
    # The file descriptors, not sys.stdout: a handler made meanwhile would keep a closed file.
    kept = os.dup(1), os.dup(2)
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
    """Turn a panic of compiled Rust code into an error as others are. The tokenizers library
    panics, which is no ``Exception``, on some files that it did not write.

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
