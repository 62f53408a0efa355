"""This process: its rank among those launched together, its threads, and the signals that stop it.

``accelerate launch`` and ``torchrun`` set ``RANK`` and ``WORLD_SIZE`` for each process they start.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# 128 + the signal's number, as a shell reports it.
INTERRUPTED, TERMINATED = 130, 143

_threads_from = "torch's own choice"


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
