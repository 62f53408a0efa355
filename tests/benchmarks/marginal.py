"""What another sample costs."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import Namespace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.gauge import spread, timed
from tests.benchmarks.rivals import load_ours
from tests.benchmarks.samples import Asked, ask, requests_of
from tests.benchmarks.turns import TURN, active, begin, run_in_turns

__all__ = ["measure_marginal", "work_marginal"]

SIZES = (16, 48, 96)


def measure_marginal(folder: Path, options: Namespace) -> dict[str, Any]:
    """Seconds that another sample costs, from each size to the next. Each size has a process of
    its own, and turns as long as its share of the samples: all of them are under way all the time,
    so that a machine whose speed changes meanwhile changes every size alike.
    """
    found = {}
    for task in options.tasks:
        costs: list[list[float]] = []
        for _turn in range(options.repeats):
            times = _seconds(task, folder, options)
            steps = [(0, SIZES[0]), *pairwise(SIZES)]
            costs.append([(times[b] - times.get(a, 0.0)) / (b - a) for a, b in steps])
        found[task] = {
            name: spread([each[i] for each in costs])
            for i, name in enumerate(f"{a} to {b}" for a, b in steps)
        }
        said = json.dumps(found[task], default=str)
        print(f"{task}, seconds a further sample: {said}", file=sys.stderr, flush=True)
    return found


def _seconds(task: str, folder: Path, options: Namespace) -> dict[int, float]:
    line = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.measure_speed"]
    line += ["--model", str(folder), "--dtype", options.dtype, "--device", options.device]
    line += ["--tasks", task, "--worker", "marginal"]
    with tempfile.TemporaryDirectory() as scratch:
        commands = {
            str(size): [*line, "--limit", str(size), "--told", f"{scratch}/{size}"]
            for size in SIZES
        }
        turns = {str(size): TURN * size / SIZES[1] for size in SIZES}
        ran = run_in_turns(commands, turns if options.device == "cpu" else None)
        spans = {size: json.loads(Path(scratch, str(size)).read_text("utf-8")) for size in SIZES}
    return {size: active(ran[str(size)], *span) for size, span in spans.items()}


def work_marginal(folder: Path, options: Namespace) -> None:
    """One size, in this process, on a model that has answered before."""
    ours, (task,) = load_ours(folder, options), options.tasks
    ask(ours, _samples(task, 4))
    asked = _samples(task, options.limit)
    begin()
    start = time.time()
    timed(partial(ask, ours, asked), options.device)
    options.told.write_text(json.dumps([start, time.time()]), encoding="utf-8")


def _samples(task: str, size: int) -> Asked:
    """So many samples; a row of PrivLeak is two, a text to forget and one of the holdout."""
    return requests_of(task, size // 2 if task == "news_privleak" else size)
