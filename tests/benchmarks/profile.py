"""Where our time goes, by kind of operation."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.rivals import load_ours
from tests.benchmarks.samples import ask, requests_of

__all__ = ["measure_profile"]

# Causal attention over a text is one kernel; a decoding step's attention to the cache is bmm.
KINDS = {
    "products with weights": ("aten::mm", "aten::addmm"),
    "attention": (
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
    ),
}


def measure_profile(folder: Path, options: Namespace) -> dict[str, Any]:
    """Each kind's share of an operation's own time, by task, at ``none``."""
    ours, found = load_ours(folder, options), {}
    activities = [ProfilerActivity.CPU]
    if options.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    for task in options.tasks:
        asked = requests_of(task, options.limit)
        ask(ours, asked[:1])
        with profile(activities=activities) as watched:
            ask(ours, asked)
        times: dict[str, float] = {}
        for event in watched.key_averages():
            on_gpu = options.device != "cpu"
            own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            kind = next((k for k, names in KINDS.items() if event.key in names), "the rest")
            times[kind] = times.get(kind, 0.0) + own
        whole = sum(times.values())
        found[task] = {kind: round(own / whole, 3) for kind, own in times.items()}
        print(f"{task}, shares of time: {json.dumps(found[task])}", file=sys.stderr, flush=True)
    return found
