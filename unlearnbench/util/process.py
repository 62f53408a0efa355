"""This process: its rank among those launched together, its threads, the signals that stop it,
``--explain``, how far it is, and other libraries kept silent: their notes would drown an error's
one line.

``accelerate launch`` and ``torchrun`` set ``RANK`` and ``WORLD_SIZE`` for each process they start.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from unlearnbench.errors import CheckpointError, one_line

# 128 + the signal's number, as a shell reports it.
INTERRUPTED, TERMINATED = 130, 143

_LOG = logging.getLogger("unlearnbench")
_EXPLAIN = logging.getLogger("unlearnbench.explain")
_EXPLAIN.setLevel(logging.WARNING)

_threads_from = "torch's own choice"

_LINE_EVERY = 30.0
"""Seconds between two lines on how far the work is, where no terminal shows it."""
_SHOWN = "{desc}: {n_fmt} of {total_fmt} {unit}s ({percentage:.0f}%), {rate_fmt}, {remaining} left"


def process_count() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process prints and writes files; the others of a launch only compute."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


def set_threads(threads: int | None) -> None:
    """Use so many processor threads; None leaves torch's own choice."""
    global _threads_from
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
        _threads_from = "asked for by --threads"


def describe_threads() -> str:
    """How many processor threads torch uses, and who chose that."""
    import torch

    return f"{torch.get_num_threads()} threads: {_threads_from}"


class ProgressLine:
    """How far long work is: its stage, what is done, the rate and the time left. A terminal shows
    one line, which is replaced and goes when the stage ends; elsewhere, as in a CI's log, there is
    a plain line every half minute. Not shown: nothing.
    """

    def __init__(
        self, stage: str, total: int, unit: str, shown: bool = True, done: int = 0
    ) -> None:
        self._stage, self._total, self._unit, self._shown = stage, total, unit, shown
        self._done = self._first = done
        self._bar: Any = None
        self._began = self._last = time.monotonic()

    def __enter__(self) -> ProgressLine:
        if self._shown and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self._stage,
                total=self._total,
                initial=self._first,
                unit=self._unit,
                leave=False,
                bar_format=_SHOWN,
                file=sys.stderr,
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def goes_on(self, done: int) -> None:
        """So many were done before; they count for no rate."""
        self._done = self._first = done
        if self._bar is not None:
            self._bar.initial = self._bar.n = done

    def update(self, count: int = 1, note: str = "") -> None:
        """So many more are done; ``note`` stands beside the stage."""
        self._done += count
        stage = f"{self._stage} {note}".strip()
        if self._bar is not None:
            self._bar.set_description_str(stage, refresh=False)
            self._bar.update(count)
        elif self._shown and (now := time.monotonic()) >= self._last + _LINE_EVERY:
            self._last, rate = now, max(1, self._done - self._first) / (now - self._began)
            left = (self._total - self._done) / rate
            _LOG.info(
                f"{stage}: {self._done} of {self._total} {self._unit}s, {rate:.3g} a second, "
                f"{left // 60:.0f}:{left % 60:02.0f} left"
            )


def show_explanations(shown: bool) -> None:
    """Print the lines, or do not."""
    _EXPLAIN.setLevel(logging.INFO if shown else logging.WARNING)


def explain(line: str) -> None:
    """Say one thing that was chosen, with its reason."""
    _EXPLAIN.info("explain: %s", line)


def explain_loaded(device: str, dtype: str, kernel: str | None) -> None:
    """Say what a loaded model runs on."""
    explain(f"device {device}, compute dtype {dtype}")
    if kernel == "dequantized":
        explain("kernel dequantized: weights in force written back, dense products are faster here")
    elif kernel == "native":
        explain("kernel native: the library's own products on packed weights")
    if device == "cpu":
        explain(describe_threads())


class StopSignal:
    """Which signal stopped the command; its exit status."""

    def __init__(self) -> None:
        self.status = INTERRUPTED

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: batch systems send it some seconds before SIGKILL."""
        self.status = TERMINATED
        raise KeyboardInterrupt


@contextmanager
def catch_stops() -> Iterator[StopSignal]:
    """Have SIGTERM do inside the block what Ctrl-C does: raise KeyboardInterrupt."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handler
        yield stop
        return
    before = signal.signal(signal.SIGTERM, stop.terminate)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


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
    other GPUs and on its use of torch. And bitsandbytes' lines for kernels that it cannot fetch,
    and for every int8 product.

    oneDNN keeps what it makes for each number of rows, as 641 MB in bf16 for 200 of them and one
    layer of 1536x576, up to 1,024. Here it keeps 64, which it reads at its first product.
    """
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        os.environ.setdefault(name, "64")
    for name in ("torchao", "torch.utils._pytree", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_transformers() -> None:
    """Silence transformers' advice for people who train, and its bar for each shard."""
    quiet_imports()
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


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
