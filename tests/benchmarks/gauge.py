"""What `make bench` measures with: seconds, spreads, and memory above a baseline."""

from __future__ import annotations

import gc
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["Spread", "spread", "timed", "watch_memory"]


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Seconds on the clock, and what came out."""
    gc.collect()
    _wait(device)
    start = time.perf_counter()
    made = work()
    _wait(device)
    return time.perf_counter() - start, made


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Spread:
    """Repeats of one figure: their median, least and largest."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


def _held(field: str) -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"{field}:\s+(\d+)", status)
    return int(found.group(1)) * 1024 if found else 0


def watch_memory(work: Callable[[], Any], device: str) -> tuple[dict[str, float], Any]:
    """The bytes of ``work`` at its peak above what was held before: anonymous memory, and all
    resident memory, which counts mapped files that the kernel may drop. And what it made.
    """
    gc.collect()
    before = {name: _held(name) for name in ("RssAnon", "VmRSS")}
    most, stop = dict(before), threading.Event()

    def look() -> None:
        while not stop.wait(0.005):
            for name in most:
                most[name] = max(most[name], _held(name))

    watcher = threading.Thread(target=look, daemon=True)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    watcher.start()
    _seconds, made = timed(work, device)
    stop.set()
    watcher.join()
    found = {
        "anonymous": float(most["RssAnon"] - before["RssAnon"]),
        "resident": float(most["VmRSS"] - before["VmRSS"]),
    }
    if device != "cpu":
        found["gpu"] = float(torch.cuda.max_memory_allocated())
    return found, made
