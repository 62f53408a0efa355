"""A whole evaluation by each rival in a process of its own, loading and all."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.gauge import spread, watch_memory
from tests.benchmarks.rivals import NAMES, Harness, Plain, Rival, load_plain
from tests.benchmarks.samples import TASKS, Asked, ask, data_folder, requests_of, scored
from unlearnbench.models.source import DTYPES
from unlearnbench.requests import Generate, Score

__all__ = ["measure_whole", "work"]


def evaluate_ours(folder: Path, options: Namespace) -> None:
    """As the command line does."""
    from unlearnbench import evaluate

    with tempfile.TemporaryDirectory() as out:
        evaluate(
            str(folder),
            list(TASKS),
            list(options.precisions),
            output=out,
            data_dir=data_folder(),
            limit=options.limit,
            dtype=options.dtype,
            device=options.device,
        )


def evaluate_rival(make: Callable[[Any, Any], Rival], folder: Path, options: Namespace) -> Any:
    """The same tasks, reloading for each precision; the plain one as published evaluators do also
    scores the retain texts, and every text lower-cased.

    Of the plain one's samples, which cost the same one by one, the first ``plain_limit`` rows are
    run, and their seconds are multiplied by how many times their tokens all rows have. Returns
    seconds by task (all rows'), and of loading.
    """
    dtype = getattr(torch, DTYPES[options.dtype])
    seconds = dict.fromkeys(("loading", *TASKS), 0.0)
    for precision in options.precisions:
        start = time.perf_counter()
        rival = make(*load_plain(folder, precision, dtype, options.device))
        seconds["loading"] += time.perf_counter() - start
        for task in TASKS:
            limit = options.plain_limit if isinstance(rival, Plain) else options.limit
            asked, all_rows = (_asked(task, rival, n) for n in (limit, options.limit))
            start = time.perf_counter()
            ask(rival, asked)
            took = time.perf_counter() - start
            share = _tokens(rival, all_rows) / _tokens(rival, asked) if limit < options.limit else 1
            seconds[task] += took * share
    return seconds


def _asked(task: str, rival: Rival, limit: int) -> Asked:
    asked = requests_of(task, limit)
    texts = scored(asked)
    if texts and isinstance(rival, Plain):
        texts += _retain(limit)
        return texts + [Score(f"{r.id}:lower", r.text.lower()) for r in texts]
    return asked


def _tokens(rival: Rival, asked: Asked) -> int:
    assert isinstance(rival, Plain)
    return sum(
        rival.count(r.prompt) + r.max_new_tokens if isinstance(r, Generate) else rival.count(r.text)
        for r in asked
    )


def _retain(limit: int) -> list[Score]:
    path = data_folder() / "muse-bench/MUSE-News/privleak/retain.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[:limit]]
    return [Score(f"retain/{i}", row["text"]) for i, row in enumerate(rows)]


def work(name: str, folder: Path, options: Namespace) -> dict[str, float]:
    """One rival's whole evaluation, in this process, which has imported everything before."""
    if name == "ours":
        import bitsandbytes  # noqa: F401
        import datasets  # noqa: F401
        import sklearn.metrics  # noqa: F401
        import transformers.models.llama.modeling_llama  # noqa: F401

        import unlearnbench.evaluator  # noqa: F401

        return watch_memory(lambda: evaluate_ours(folder, options), options.device)[0]
    if name == "hflm":
        import lm_eval.models.huggingface  # noqa: F401
    make: Callable[[Any, Any], Rival] = Plain if name == "plain" else Harness
    found, seconds = watch_memory(lambda: evaluate_rival(make, folder, options), options.device)
    return {**found, **seconds, "seconds": sum(seconds.values())}


def measure_whole(folder: Path, options: Namespace) -> dict[str, Any]:
    """Seconds and memory of each, and how many times ours the others take."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
    for turn in range(options.whole_repeats):
        for name in [*NAMES[turn % 3 :], *NAMES[: turn % 3]]:
            command = [sys.executable, "-m", "tests.benchmarks.measure_speed", "--worker", name]
            command += ["--model", str(folder), "--dtype", options.dtype]
            command += ["--device", options.device, "--limit", str(options.limit)]
            command += ["--plain-limit", str(options.plain_limit)]
            command += ["--precisions", ",".join(options.precisions)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs[name].append(json.loads(done.stdout.strip().splitlines()[-1]))
            print(f"whole, {name}: {json.dumps(runs[name][-1])}", file=sys.stderr, flush=True)
    found: dict[str, Any] = {
        name: {key: spread([run[key] for run in each]) for key in each[0]}
        for name, each in runs.items()
    }
    for name in ("plain", "hflm"):
        pairs = zip(runs[name], runs["ours"], strict=True)
        found[f"{name} / ours"] = spread([a["seconds"] / b["seconds"] for a, b in pairs])
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    held = [run["anonymous"] for run in runs["ours"]]
    found["ours, memory in copies of the weights, less 600 MB"] = spread(
        [(bytes_ - 600e6) / weights for bytes_ in held]
    )
    return found
