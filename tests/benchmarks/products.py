"""What choosing the library of products saves: the same model with torch's own and as chosen."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

from tests.benchmarks.gauge import spread
from tests.benchmarks.rivals import load_ours
from tests.benchmarks.samples import ask, requests_of
from unlearnbench.models import packable

__all__ = ["measure_products"]


def measure_products(folder: Path, options: Namespace) -> dict[str, Any]:
    """Seconds by task, in turns, of the main thread's own time: what else the machine does counts
    little, and one thread is to be used (OMP_NUM_THREADS=1). The choice may stand in the user's
    cache; XDG_CACHE_HOME says otherwise.
    """
    models = {"torch": load_ours(folder, options), "chosen": load_ours(folder, options)}
    found: dict[str, Any] = {}
    least = packable.LARGE
    for name, rival in models.items():
        packable.LARGE = 2**62 if name == "torch" else least
        start = time.thread_time()
        rival.model.quicken()
        found[f"seconds to choose, {name}"] = time.thread_time() - start
    packable.LARGE = least
    found["products"] = models["chosen"].model.products
    for task in options.tasks:
        asked = requests_of(task, options.limit)
        seconds: dict[str, list[float]] = {name: [] for name in models}
        for rival in models.values():
            ask(rival, asked[:1])
        for turn in range(options.repeats):
            for name in [*models][:: 1 if turn % 2 else -1]:
                start = time.thread_time()
                ask(models[name], asked)
                seconds[name].append(time.thread_time() - start)
        ratios = [a / b for a, b in zip(seconds["torch"], seconds["chosen"], strict=True)]
        found[task] = {name: spread(each) for name, each in seconds.items()}
        found[task]["torch / chosen"] = spread(ratios)
        print(f"products, {task}: {json.dumps(found[task], default=str)}", file=sys.stderr)
    return found
