"""Utility: what a model still knows of what was to stay, over what the target knows. Of several
retain tasks it is the ratio of the harmonic means of their figures (TOFU's model utility, Maini et
al. 2024, arXiv 2401.06121): an ability that is lost is not made good by others.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.errors import MetricError
from unlearnbench.metrics.intervals import (
    Array,
    Draws,
    Estimate,
    Values,
    drawn_means,
    with_trainings,
)
from unlearnbench.metrics.truth import harmonic_mean
from unlearnbench.recovery.statistics import Scale
from unlearnbench.results import TaskResult
from unlearnbench.tasks.registry import kind_modules


@dataclass(frozen=True)
class Retained:
    """A family's retain tasks."""

    name: str
    """The task's; of several, ``tofu_*``."""
    parts: tuple[tuple[str, str], ...]
    """Tasks, each with a figure that utility is made of."""
    n: int
    """Samples of the smallest."""


def retained_of(
    tasks: Mapping[str, TaskResult], task: str, figure: str | None = None
) -> Retained | None:
    """The retain tasks of a task's family, those whose names begin alike, as ``news_``; None where
    there is none. ``figure``: in place of the tasks' own, where all of them have it.
    """
    family = f"{task.split('_', 1)[0]}_"
    found = {n: t for n, t in tasks.items() if t.want == "high" and f"{n}_".startswith(family)}
    if not found:
        return None
    if figure is not None and all(figure in (t.metric, *t.scores) for t in found.values()):
        parts = [(name, figure) for name in found]
    else:
        parts = [(n, part) for n, t in found.items() for part in (t.metric, *retained_figures(t))]
    name = f"{family}*" if len(found) > 1 else next(iter(found))
    return Retained(name, tuple(parts), min(t.n for t in found.values()))


def retained_figures(task: TaskResult) -> tuple[str, ...]:
    """The figures beside a retain task's own that utility is made of."""
    known = [each for file in kind_modules() for each in getattr(file, "RETAINED", ())]
    return tuple(name for name in known if task.want == "high" and name in task.scores)


@dataclass(frozen=True)
class KeptFigure:
    """One figure of one retain task."""

    task: str
    models: Sequence[Values]
    """Of each training of a recipe."""
    target: Values
    draws: Draws


def share_of(parts: Sequence[KeptFigure]) -> Estimate:
    """A model's harmonic mean over the target's, with its interval; the mean over trainings. Of one
    part it is the ratio of means.

    Each draw weighs the rows of all parts anew, with one row that was not seen, which is against
    the model and for the target at the lower end; tasks of as many rows share their weights, so
    figures of the same rows move together. Raises MetricError where the target scores 0.
    """
    for part in parts:
        if not part.target.values.any():
            raise MetricError(f"{part.task}: the target scores 0, so utility is not defined")
    trainings = range(len(parts[0].models))
    if len(parts) == 1:
        models, target = parts[0].models, [parts[0].target for _ in trainings]
        return Scale("high", parts[0].draws).share(models, target, least=0.0)
    base = harmonic_mean([part.target.mean for part in parts])
    each = [harmonic_mean([part.models[i].mean for part in parts]) / base for i in trainings]
    value = math.fsum(each) / len(each)
    if all(model is part.target for part in parts for model in part.models):
        return Estimate(value, (value, value))
    if min(part.target.n for part in parts) < 2:
        return Estimate(value)
    least = min(len(part.draws.weights) for part in parts)
    drawn = []
    for side in (0, 1):
        under = _harmonic([drawn_means(p.target, p.draws, 1 - side)[:least] for p in parts])
        if not (under > 0).all():
            return Estimate(value)
        over = [
            _harmonic([drawn_means(p.models[i], p.draws, side)[:least] for p in parts])
            for i in trainings
        ]
        drawn.append(np.mean(over, axis=0) / under)
    k = max(1, int(parts[0].draws.tail * (least + 1)))
    low, high = np.sort(drawn[0])[k - 1], np.sort(drawn[1])[least - k]
    ends = min(value, float(low)), max(value, float(high))
    found = Estimate(value, ends, float(np.std((drawn[0] + drawn[1]) / 2, ddof=1)))
    return with_trainings(found, each, parts[0].draws.confidence, (0.0, math.inf))


def _harmonic(means: Sequence[Array]) -> Array:
    """Of each draw's means, none of which is negative; 0 where one is 0."""
    rows = np.maximum(np.stack(means), 0.0)
    with np.errstate(divide="ignore"):
        return np.asarray(len(rows) / (1 / rows).sum(axis=0))
