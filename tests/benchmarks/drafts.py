"""What drafts save: a task's answers at further conditions, without drafts, with what the first
condition answered, and with drafts that are all wrong (another prompt's answer). Beside them the
limit: the prompts alone, with one token each, which a condition has to run whatever is known.

Seconds are the process's own processor time, so that what else runs on the machine counts little.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.gauge import Spread, spread
from tests.benchmarks.samples import requests_of
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Generated

__all__ = ["measure_drafts"]

FIRST, FURTHER = "none", ("none", "rtn-int8", "bnb-fp4")


def measure_drafts(folder: Path, options: Namespace) -> dict[str, Any]:
    """By task and condition."""
    found: dict[str, Any] = {}
    for task in [name for name in options.tasks if "privleak" not in name]:
        asked = [r for r in requests_of(task, options.limit) if isinstance(r, Generate)]
        first = _load(folder, FIRST, options)
        list(first.generate([replace(asked[0], max_new_tokens=4)]))  # what is done once
        texts = {a.id: a.text for a in first.generate(asked)}
        found[task] = {}
        for name in FURTHER:
            model = first if name == FIRST else _load(folder, name, options)
            found[task][name] = _turns(model, asked, texts, options.repeats)
            said = json.dumps(found[task][name], default=str)
            print(f"{task} at {name}: {said}", file=sys.stderr, flush=True)
    return found


def _load(folder: Path, name: str, options: Namespace) -> HFModel:
    from unlearnbench.conditions import resolve
    from unlearnbench.conditions.load import prepare_all
    from unlearnbench.conditions.options import KernelOptions

    asked = KernelOptions.of({"dtype": options.dtype, "device": options.device})
    (prepared,) = prepare_all(str(folder), resolve([name]), asked)
    return prepared.load()


def _turns(
    model: HFModel, asked: Sequence[Generate], texts: dict[str, str], repeats: int
) -> dict[str, Any]:
    """The ways in turns, each of which begins with another."""
    right = [replace(r, drafts=(texts[r.id],)) for r in asked]
    others = [*asked[1:], asked[0]]
    wrong = [
        replace(r, drafts=(texts[o.id][::-1] or "none",))
        for r, o in zip(asked, others, strict=True)
    ]
    alone = [replace(r, max_new_tokens=1) for r in asked]
    ways = {"plain": asked, "drafted": right, "wrong": wrong, "prompts alone": alone}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    answers: dict[str, list[Generated]] = {}
    list(model.generate([replace(right[0], max_new_tokens=4)]))
    for turn in range(repeats):
        names = [*ways][turn % 4 :] + [*ways][: turn % 4]
        for way in names:
            start = time.process_time()
            answers[way] = sorted(model.generate(ways[way]), key=lambda answer: answer.id)
            seconds[way].append(time.process_time() - start)
    texts_of = {way: [answer.text for answer in found] for way, found in answers.items()}
    return {
        "samples": len(asked),
        "seconds": {way: spread(own) for way, own in seconds.items()},
        "drafted / plain": _ratio(seconds["drafted"], seconds["plain"]),
        "wrong / plain": _ratio(seconds["wrong"], seconds["plain"]),
        "times faster at most": _ratio(seconds["plain"], seconds["prompts alone"]),
        "tokens": sum(answer.n_tokens for answer in answers["plain"]),
        "passes": {way: sum(a.passes for a in answers[way]) for way in ("drafted", "wrong")},
        "accepted": {way: sum(a.accepted for a in answers[way]) for way in ("drafted", "wrong")},
        "drafted": {way: sum(a.drafted for a in answers[way]) for way in ("drafted", "wrong")},
        "other texts": {
            way: sum(a != b for a, b in zip(texts_of[way], texts_of["plain"], strict=True))
            for way in ("drafted", "wrong")
        },
        "as the first": sum(answer.text == texts[answer.id] for answer in answers["plain"]),
    }


def _ratio(some: list[float], others: list[float]) -> Spread:
    return spread([a / b for a, b in zip(some, others, strict=True)])
