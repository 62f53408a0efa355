"""Scores of checkpoints one after another, as of a model that is unlearned request by request: what
each step does to what is forgotten and to what is to stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import OptionError, one_line
from unlearnbench.metrics.intervals import Estimate, draw
from unlearnbench.recovery.compare import SEED, Comparison, load_one
from unlearnbench.recovery.reports import points
from unlearnbench.recovery.statistics import Scale
from unlearnbench.results import TaskResult
from unlearnbench.runs.entries import Entry, load_entries, require_comparable, run_key
from unlearnbench.util.text import fitted_table


@dataclass(frozen=True)
class Curve:
    """One task under one condition, checkpoint after checkpoint."""

    task: str
    condition: str
    want: str
    n: int
    values: dict[str, Estimate]
    """By checkpoint, in order."""
    change: Estimate
    """The last minus the first, over the same samples."""


def curves(runs: Sequence[Path], retrained: Path | None = None) -> tuple[list[Curve], list[str]]:
    """A curve for every task and condition that all checkpoints were measured with, and what is
    left out. Checkpoints come in the order given, those below one folder by their names' numbers.
    ``retrained``: its runs, which PrivLeak is measured against.

    Raises:
        OptionError: there are fewer than two checkpoints, they have nothing in common, runs cannot
            be compared, or several are given as the retrained one.
        ResultError: a run is missing or damaged.
        MetricError: a score is not finite.
    """
    entries = _in_order(runs)
    if len(entries) < 2:
        raise OptionError("a curve needs two checkpoints or more; give their run folders")
    base = load_one(retrained, "retrained") if retrained is not None else entries[0]
    comparison = Comparison(entries, base, base)
    found, left = list[Curve](), dict[str, None]()
    every = dict.fromkeys(name for entry in entries for name in entry.runs)
    for condition in every:
        lack = [entry.name for entry in entries if condition not in entry.runs]
        if lack:
            left[f"{condition}: {', '.join(lack)} were not measured under it"] = None
            continue
        tasks = dict.fromkeys(t for e in entries for t in e.at(condition).result.tasks)
        for task in tasks:
            lack = [e.name for e in entries if task not in e.at(condition).result.tasks]
            results = [e.at(condition).task(task) for e in entries if e.name not in lack]
            if lack:
                left[f"{task}: {', '.join(lack)} were not asked it"] = None
            elif _leaks(results[0]) and retrained is None:
                left[f"{task}: give --retrained RUN, which PrivLeak is measured against"] = None
            else:
                found.append(_curve(comparison, task, condition))
    if not found:
        raise OptionError("no task was measured under one condition of all: " + "; ".join(left))
    return found, list(left)


def _leaks(result: TaskResult) -> bool:
    return result.attack is not None


def _in_order(runs: Sequence[Path]) -> list[Entry]:
    given = load_entries(runs)
    places = [run.resolve() for run in runs]

    def key(entry: Entry) -> tuple[int, list[tuple[int, str]]]:
        folder = next(iter(entry.runs.values())).path.resolve()
        above = (folder, *folder.parents)
        at = next((i for i, place in enumerate(places) if place in above), len(places))
        parts = re.split(r"(\d+)", entry.name)
        return at, [(int(part), "") if part.isdecimal() else (0, part) for part in parts]

    return sorted(given, key=key)


def _curve(comparison: Comparison, task: str, condition: str) -> Curve:
    first, *others = comparison.entries
    for entry in others:
        require_comparable(entry.at(condition), first.at(condition), [task])
    result = first.at(condition).task(task)
    if _leaks(result):
        require_comparable(comparison.retrained.full, first.at(condition), [task])
    scores = {e.name: comparison.scores(e.at(condition), task) for e in comparison.entries}
    scale = comparison.scale(task) if _leaks(result) else Scale(result.want, draw(result.n, SEED))
    last = comparison.entries[-1]
    same = run_key(last.at(condition)) == run_key(first.at(condition))
    moved = scores[last.name].minus(scores[first.name])
    change = Estimate(0.0) if same else scale.difference([moved])
    values = {name: scale.value([each]) for name, each in scores.items()}
    return Curve(task, condition, result.want, result.n, values, change)


def curve_table(found: Sequence[Curve]) -> str:
    """A row a task and condition, a column a checkpoint."""
    names = [one_line(name, 40) for name in found[0].values]
    rows = [
        [c.task, c.want, c.condition, *map(points, c.values.values()), points(c.change)]
        for c in found
    ]
    return fitted_table(rows, ["task", "want", "condition", *names, "last - first"])


def curves_json(found: Sequence[Curve]) -> str:
    """The curves as a JSON file's content."""
    content = [
        {
            **{name: getattr(curve, name) for name in ("task", "condition", "want", "n")},
            "points": [_figure(figure) | {"entry": n} for n, figure in curve.values.items()],
            "change": _figure(curve.change),
        }
        for curve in found
    ]
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _figure(figure: Estimate) -> dict[str, object]:
    return {"value": figure.value, "ci": figure.ci}
