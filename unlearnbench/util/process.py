"""SIGTERM as a clean stop: what Ctrl-C does, with an exit status of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# 128 + the signal's number, as a shell reports it.
INTERRUPTED, TERMINATED = 130, 143


def process_count() -> int:
    """How many processes were launched together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Whether this process prints and writes files; the others of a launch only compute."""
    return process_count() == 1 or os.environ.get("RANK", "0") == "0"


class Stops:
    """Which signal stopped the command; its exit status."""

    def __init__(self) -> None:
        self.status = INTERRUPTED

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGTERM: batch systems send it some seconds before SIGKILL."""
        self.status = TERMINATED
        raise KeyboardInterrupt


@contextmanager
def catch_stops() -> Iterator[Stops]:
    """Have SIGTERM raise KeyboardInterrupt inside the block."""
    stops = Stops()
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handler
        yield stops
        return
    before = signal.signal(signal.SIGTERM, stops.terminate)
    try:
        yield stops
    finally:
        signal.signal(signal.SIGTERM, before)
