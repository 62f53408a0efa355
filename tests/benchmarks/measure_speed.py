"""Measure evaluation on real MUSE-News rows against a plain evaluator and lm-eval's HFLM, and print
the tables of docs/speed.md.

    make bench                                 # SmolLM2-135M, some three hours on 2 cores
    python -m tests.benchmarks.measure_speed --model tiny   # some minutes
    python -m tests.benchmarks.measure_speed --model llama-2-7b --device cuda --dtype bf16

Needs UNLEARNBENCH_DATA. Everything is a ratio within one run: the rivals take turns in every
repeat, and each turn begins with another. `tasks`: on models in memory, seconds a sample by task.
`whole`: one command's work in a process of its own for each rival, loading included (and for ours
metrics and files), with its peak memory; on CPU the three run five seconds each by turns. `floor`:
the seconds that its operations take at the machine's peak. `profile`: where ours goes. `marginal`:
what another sample costs. `rounding`: how many scores are others than one prompt at a time by the
plain evaluator gives. `products`: torch's own against those chosen. `drafts`: what drafts save at
further conditions. `start`: the command line. Figures in brackets are the least and the largest
of the repeats; a whole evaluation is one repeat unless --whole-repeats says more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.drafts import measure_drafts
from tests.benchmarks.floor import measure_floor
from tests.benchmarks.gauge import Spread, spread, timed
from tests.benchmarks.marginal import measure_marginal, work_marginal
from tests.benchmarks.products import measure_products
from tests.benchmarks.profile import measure_profile
from tests.benchmarks.rivals import NAMES, Harness, Ours, Plain, Rival, load_ours, load_plain
from tests.benchmarks.rounding import measure_rounding
from tests.benchmarks.samples import Asked, alike, ask, requests_of, scored
from tests.benchmarks.subjects import make_subject
from tests.benchmarks.whole import measure_whole, work
from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.models.floor import forward_flops, matmul_peak
from unlearnbench.util.processor import processor_name

TIMED = ("news_verbmem", "news_knowmem_f", "news_privleak")
PRECISIONS = ("none", "bnb-int8", "bnb-fp4")
PARTS = ("tasks", "marginal", "whole", "floor", "profile", "drafts", "start")
"""And rounding, products."""
# HFLM's rolling log-likelihood counts a text's first token, and MUSE does not.
COMPARED = dict.fromkeys(TIMED, ("plain", "hflm")) | {"news_privleak": ("plain",)}


def load_rivals(folder: Path, options: argparse.Namespace) -> dict[str, Rival]:
    dtype = getattr(torch, DTYPES[options.dtype])
    model, tokenizer = load_plain(folder, "none", dtype, options.device)
    ours = load_ours(folder, options)
    plain, hflm = Plain(model, tokenizer), Harness(model, tokenizer, options.hflm_batch)
    return {"ours": ours, "plain": plain, "hflm": hflm}


def counts(options: argparse.Namespace) -> dict[str, int]:
    """Samples a turn: the plain evaluator's cost is the same for each, so that few will do."""
    return {"ours": options.limit, "hflm": options.limit, "plain": options.plain_limit}


def measure_tasks(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds a sample, interleaved, and the scoring pass's share of the machine's peak."""
    rivals, found = load_rivals(folder, options), {}
    dtype = getattr(torch, DTYPES[options.dtype])
    for task in options.tasks:
        asked = {name: requests_of(task, n) for name, n in counts(options).items()}
        answers = {name: ask(rival, asked[name]) for name, rival in rivals.items()}  # warm-up
        seconds: dict[str, list[float]] = {name: [] for name in rivals}
        peaks = []
        for turn in range(options.repeats):
            names = list(rivals)[turn % 3 :] + list(rivals)[: turn % 3]
            for name in names:
                took, _made = timed(partial(ask, rivals[name], asked[name]), options.device)
                seconds[name].append(took / len(asked[name]))
            peaks.append(matmul_peak(dtype, options.device))
        found[task] = {
            "seconds": {name: spread(values) for name, values in seconds.items()},
            "ratio": {
                name: spread([a / b for a, b in zip(seconds[name], seconds["ours"], strict=True)])
                for name in ("plain", "hflm")
            },
            "alike": {name: alike(answers["ours"], answers[name]) for name in COMPARED[task]},
        }
        if task == "news_privleak":
            found[task] |= _shares(rivals, asked["ours"], seconds, peaks)
        say(f"{task}: {json.dumps(found[task], default=str)}")
    return found


def _shares(
    rivals: Mapping[str, Rival],
    asked: Asked,
    seconds: Mapping[str, list[float]],
    peaks: list[float],
) -> dict[str, Any]:
    """Of the peak that was measured in the same turn."""
    ours = rivals["ours"]
    assert isinstance(ours, Ours)
    lengths = [len(ours.model.tokens.encode(r.text)) for r in scored(asked)]
    flops = forward_flops(ours.model.network, lengths) / len(lengths)
    shares = {
        name: [flops / s / p for s, p in zip(seconds[name], peaks, strict=True)]
        for name in ("ours", "hflm")
    }
    if max(map(max, shares.values())) > 1.1:
        sys.exit(f"more than the machine can: {shares}; something did not run")
    return {
        "share of peak": {name: spread(found) for name, found in shares.items()},
        "peak GFLOP/s": spread([peak / 1e9 for peak in peaks]),
        "tokens a second": spread([sum(lengths) / len(lengths) / s for s in seconds["ours"]]),
    }


def measure_start(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    for arguments in (["--help"], ["tasks"]):
        command = [sys.executable, "-m", "unlearnbench", *arguments]

        def call(command: Sequence[str] = command) -> object:
            return subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

        call()
        found[arguments[0]] = spread([timed(call, "cpu")[0] for _ in range(5)])
    say(f"start: {json.dumps(found, default=str)}")
    return found


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _plain_numbers(found: object) -> object:
    if isinstance(found, Spread):
        return {"median": found.median, "low": found.low, "high": found.high}
    if isinstance(found, Mapping):
        return {key: _plain_numbers(value) for key, value in found.items()}
    return found


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2", help="smollm2, tiny, llama-2-7b or a folder")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit", type=int, default=16, help="rows of each split")
    parser.add_argument("--plain-limit", type=int, default=4, help="those of the plain evaluator")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole-repeats", type=int, default=1)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--tasks", default=",".join(TIMED), help="of tasks and marginal")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--out", type=Path, help="write everything as JSON")
    parser.add_argument("--hflm-batch", default="8", help="HFLM's batch size, or auto")
    parser.add_argument("--worker", choices=[*NAMES, "marginal"], help=argparse.SUPPRESS)
    parser.add_argument("--told", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.precisions = options.precisions.split(",")
    options.tasks = options.tasks.split(",")
    return options


def main() -> None:
    options = read_options()
    if options.worker == "marginal":
        work_marginal(Path(options.model), options)
        return
    if options.worker:
        work(options.worker, Path(options.model), options)
        return
    measures = {
        "tasks": measure_tasks,
        "marginal": measure_marginal,
        "whole": measure_whole,
        "floor": measure_floor,
        "profile": measure_profile,
        "rounding": measure_rounding,
        "products": measure_products,
        "drafts": measure_drafts,
        "start": measure_start,
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_subject(options.model, Path(scratch), options.dtype)
        found = {part: measures[part](folder, options) for part in options.parts.split(",")}
    machine = {
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": options.device
        if options.device == "cpu"
        else torch.cuda.get_device_name(options.device),
        "torch": torch.__version__,
        "dtype": options.dtype,
    }
    text = json.dumps(_plain_numbers({"machine": machine, **found}), indent=2)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
