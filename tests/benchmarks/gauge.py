"""What `make bench` holds times against: the machine's own peak, a forward pass's operations, and
memory above a baseline.
"""

from __future__ import annotations

import gc
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

__all__ = ["Spread", "forward_flops", "matmul_peak", "spread", "timed", "watch_memory"]


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


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """The most floating-point operations a second that square matrix products reach here."""
    best = 0.0
    for size in (1024, 2048) if device == "cpu" else (4096, 8192):
        a = torch.randn(size, size, device=device).to(dtype)
        b = torch.randn(size, size, device=device).to(dtype)
        for _ in range(6):
            seconds, _made = timed(partial(torch.mm, a, b), device)
            best = max(best, 2 * size**3 / seconds)
    return best


def forward_flops(model: Any, lengths: Sequence[int]) -> float:
    """Operations of one forward pass over texts of so many tokens: two for each weight of a linear
    layer and token, and causal attention's two products. Padding is not counted: it is waste.
    """
    weights = sum(
        module.out_features * module.in_features
        for module in model.modules()
        if isinstance(module, torch.nn.Linear)
    )
    config = model.config.get_text_config()
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = sum(2 * config.num_hidden_layers * width * n * n for n in lengths)
    return float(2 * weights * sum(lengths) + attention)


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
