"""What the demo took: its time, and the memory of all its processes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

_EVERY = 0.2


@dataclass
class Meter:
    """What a block took, once it has ended."""

    seconds: float = 0.0
    peak: int = 0
    """Bytes; the most that this process and those below it held together, looked at five times a
    second (resident memory; pages that several programs share count for each)."""

    def __str__(self) -> str:
        return f"took {self.seconds:.0f} s and at most {self.peak / 1e9:.1f} GB"


@contextlib.contextmanager
def measured() -> Iterator[Meter]:
    """Measure what is inside."""
    meter, ended, started = Meter(peak=_held()), threading.Event(), time.monotonic()

    def watch() -> None:
        while not ended.wait(_EVERY):
            meter.peak = max(meter.peak, _held())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield meter
    finally:
        ended.set()
        thread.join()
        meter.seconds = time.monotonic() - started


def _held() -> int:
    own = psutil.Process()
    total, lines = own.memory_info().rss, {own.pid: own.cmdline()}
    for process in own.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            lines[process.pid] = process.cmdline()
            # Between its start and its program, a child is its parent: the same pages, once more.
            if lines[process.pid] != lines.get(process.ppid()):
                total += process.memory_info().rss
    return total
