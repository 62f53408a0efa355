"""Full precision against quantized: what comes back, with intervals and a verdict.

Pure statistics over aligned scores; ``compare`` reads them from runs. docs/protocol.md says what
the numbers mean. PrivLeak is measured on the same footing as the ROUGE tasks: it is affine in the
AUC, so a recovered share is a ratio of AUC differences, and lower means closer to the target.
Several trainings (seeds) of one recipe make one row: the mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unlearnbench.metrics.intervals import (
    Bounds,
    Draws,
    Estimate,
    Values,
    holm,
    mean,
    pair_wins,
    pooled,
    ratio,
    with_trainings,
)
from unlearnbench.metrics.membership import leak_estimate, privleak
from unlearnbench.recovery import UTILITY_FLOOR

MIN_GAP = 5.0
"""Points; below it there was nothing that could come back, and no share."""
TARGET_KEEPS = 0.5
"""The least share of its full-precision score that the target must keep at a precision, on tasks
where low is good: below it the target itself forgets there, and no share is given.
"""
RECOVERED = 0.2
"""The share from which knowledge counts as recovered."""
GONE = 0.2
"""The least share of the way from the target's PrivLeak to the retrained model's that counts as
having forgotten: its zero is noisy.
"""
MOST_SAMPLES = 1_000_000

Want = Literal["low", "high", "zero"]
Verdict = Literal[
    "recovers",
    "forgets",
    "forgets (utility not measured)",
    "not decided",
    "had not forgotten",
    "target forgets",
    "collapsed",
    "holds",
]


class RecoveryRow(BaseModel):
    """One entry, task and precision. Points are 0 to 100 (PrivLeak: its own scale); shares are of
    1; what was not measured or is not bounded by the samples is absent.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    entry: str
    task: str
    precision: str
    want: Want
    n: int = Field(gt=0)
    """Samples; for PrivLeak, texts in each split."""
    seeds: int = Field(default=1, gt=0)
    """Trainings of one recipe over which every figure is the mean; the intervals hold both sources
    of chance where there are several, and that of the samples alone where there is one."""
    full: float
    full_ci: Bounds | None = None
    quantized: float
    quantized_ci: Bounds | None = None
    target: float
    """The target model at the same precision."""
    target_ci: Bounds | None = None
    target_full: float
    retrained: float
    """The retrained model in full precision."""
    retrained_ci: Bounds | None = None
    excess: float
    """``quantized - retrained``."""
    excess_ci: Bounds | None = None
    change: float
    """``quantized - full``."""
    change_ci: Bounds | None = None
    p: float | None = None
    """Of no change, two-sided."""
    significant: bool = False
    """The change holds after Holm's correction over all forget tests of one comparison."""
    forgotten: float | None = None
    """``target_full - full``: what is gone in full precision; absent in older files."""
    forgotten_ci: Bounds | None = None
    gap: float | None = None
    """``target - full``: what could come back."""
    gap_ci: Bounds | None = None
    gone: float | None = None
    """PrivLeak: how far ``full`` has gone from the target in full precision (0) to the retrained
    model (1); absent where these two are alike."""
    gone_ci: Bounds | None = None
    recovered: float | None = None
    """``change / gap``; absent where there was nothing to recover (below 5 points, or PrivLeak gone
    less than a fifth of the way), where the target itself forgets, and on retain tasks."""
    recovered_ci: Bounds | None = None
    retained: float | None = None
    """``quantized / target``; absent where the target forgets or is within 5 points of 0."""
    retained_ci: Bounds | None = None
    retained_full: float | None = None
    """``quantized / target_full``."""
    utility: float | None = None
    """Retained knowledge over the full-precision target's; absent without a retain task."""
    utility_ci: Bounds | None = None
    empty_outputs: int | None = None
    """Of the quantized model, over all seeds; absent for PrivLeak."""
    verdict: Verdict
    samples_needed: int | None = None
    """Where not decided: about how many samples would settle it."""

    def estimate(self, name: str) -> Estimate | None:
        """A figure with its interval; None where it was not measured."""
        value = getattr(self, name)
        return None if value is None else Estimate(value, getattr(self, f"{name}_ci"))

    def leakage(self, name: str) -> Estimate:
        """A difference of values, turned so that more leakage is above 0."""
        found = self.estimate(name) or Estimate(0.0)
        if self.want != "zero":
            return found
        return Estimate(-found.value, found.ci and (-found.ci[1], -found.ci[0]))

    @property
    def had_forgotten(self) -> bool:
        """Whether the unlearned model is away from the target, both in full precision."""
        away = self.target_full - self.full
        away = -away if self.want == "zero" else away
        return away >= MIN_GAP and (self.gone is None or self.gone >= GONE)


@dataclass(frozen=True)
class Scale:
    """How a task's scores become its value: ROUGE is a mean; PrivLeak is 100 x mean / ``zero``."""

    want: Want
    draws: Draws
    zero: Values | None = None
    """The retrained model's pairs, whose mean is its AUC."""

    def value(self, models: Sequence[Values]) -> Estimate:
        """A model's value, or the mean of several trainings'."""
        if self.zero is None:
            return self.difference(models)
        if all(values is self.zero for values in models):
            return Estimate(0.0)  # the retrained run's own zero, by definition
        found = leak_estimate(pooled(models), self.zero, self.draws)
        singles = [privleak(values.mean, self.zero.mean) for values in models]
        return with_trainings(found, singles, self.draws.confidence)

    def difference(self, models: Sequence[Values]) -> Estimate:
        """The mean of differences of scores, on the task's scale."""
        if self.zero is not None:
            return self.share(models, [self.zero] * len(models)).scaled(100)
        every = pooled(models)
        found, singles = mean(every, self.draws), [values.mean for values in models]
        return with_trainings(found, singles, self.draws.confidence, every.bounds)

    def excess(self, models: Sequence[Values], retrained: Values, same: bool) -> Estimate:
        """How far a model's value lies above the retrained model's; ``same``: it is that model."""
        if same:
            return Estimate(0.0, (0.0, 0.0))
        if self.zero is not None:
            return self.value(models)
        return self.difference([values.minus(retrained) for values in models])

    def share(self, tops: Sequence[Values], bottoms: Sequence[Values]) -> Estimate:
        """The ratio of means over all trainings."""
        top, bottom = pooled(tops), pooled(bottoms)
        found = ratio(top, bottom, self.draws)
        pairs = zip(tops, bottoms, strict=True)
        apart = [(t.mean - found.value * b.mean) / bottom.mean for t, b in pairs]
        return with_trainings(found, apart, self.draws.confidence)

    def share_above_zero(self, models: Sequence[Values], others: Sequence[Values]) -> Estimate:
        """The ratio of two models' values."""
        if self.zero is not None:
            models = [values.minus(self.zero) for values in models]
            others = [values.minus(self.zero) for values in others]
        return self.share(models, others)


@dataclass(frozen=True)
class Cell:
    """The scores behind one row, all over the same samples."""

    scale: Scale
    full: Sequence[Values]
    """Of each training."""
    quantized: Sequence[Values]
    target: Values
    target_full: Values
    retrained: Values
    same_as_retrained: bool = False
    """The entry is the retrained model at full precision: no difference, and no doubt about it."""
    utility: Estimate | None = None
    empty_outputs: int | None = None


def generation_scores(scores: Sequence[float]) -> Values:
    """Records' scores, 0 to 1, as points."""
    return Values(100 * np.asarray(scores, dtype=np.float64), (0.0, 100.0))


def leak_scores(members: Sequence[float], nonmembers: Sequence[float]) -> Values:
    """Pairs of texts, whose mean is the AUC."""
    return Values(pair_wins(members, nonmembers), (0.0, 1.0))


def measure(
    cell: Cell, entry: str, task: str, precision: str, floor: float = UTILITY_FLOOR
) -> RecoveryRow:
    """One row, before Holm's correction. ``floor``: the least utility that is no collapse.

    Raises:
        MetricError: a score is not finite, or the retrained model's AUC is 0.
    """
    scale, seeds = cell.scale, len(cell.full)
    moved = [now.minus(full) for now, full in zip(cell.quantized, cell.full, strict=True)]
    gaps = [cell.target.minus(full) for full in cell.full]
    figures: dict[str, Estimate | None] = {
        "full": scale.value(cell.full),
        "quantized": scale.value(cell.quantized),
        "target": scale.value([cell.target]),
        "retrained": scale.value([cell.retrained]),
        "excess": scale.excess(cell.quantized, cell.retrained, cell.same_as_retrained),
        "change": scale.difference(moved),
        "forgotten": scale.difference([cell.target_full.minus(full) for full in cell.full]),
        "gap": scale.difference(gaps),
        "utility": cell.utility,
    }
    target_full = scale.value([cell.target_full]).value
    points = {name: figure.value for name, figure in figures.items() if figure is not None}
    gone = None
    if scale.zero is not None and abs(target_full) >= MIN_GAP:
        way = cell.target_full.minus(scale.zero)
        gone = scale.share([cell.target_full.minus(full) for full in cell.full], [way] * seeds)
    figures["gone"] = gone
    keeps = target_keeps(scale.want, points["target"], target_full)
    room = -points["gap"] if scale.want == "zero" else points["gap"]
    if scale.want != "high" and keeps and room >= MIN_GAP and (gone is None or gone.value >= GONE):
        figures["recovered"] = scale.share(moved, gaps)
    if keeps and abs(points["target"]) >= MIN_GAP:
        others = [cell.target] * seeds
        figures["retained"] = scale.share_above_zero(cell.quantized, others)
    fields: dict[str, Any] = {"entry": entry, "task": task, "precision": precision}
    for name, figure in figures.items():
        if figure is not None:
            fields |= {name: figure.value, f"{name}_ci": figure.ci}
    if abs(target_full) >= MIN_GAP:
        fields["retained_full"] = points["quantized"] / target_full
    fields |= {"want": scale.want, "n": cell.target.n, "seeds": seeds}
    fields |= {"p": replace(scale, zero=None).difference(moved).p, "target_full": target_full}
    fields |= {"empty_outputs": cell.empty_outputs}
    row = RecoveryRow(**fields, verdict="not decided")
    row = row.model_copy(update={"verdict": _verdict(row, floor)})
    return row.model_copy(update={"samples_needed": _samples_needed(row)})


def target_keeps(want: Want, target: float, target_full: float) -> bool:
    """Whether the target, at a precision, still has what could come back there."""
    return want != "low" or target >= TARGET_KEEPS * target_full


def _verdict(row: RecoveryRow, floor: float) -> Verdict:
    """PROTOCOL's verdict on a row's figures. ``target forgets`` where there is no share because
    the target at that precision has forgotten too, although the unlearned model had forgotten.
    """
    if row.utility is not None and row.utility < floor:
        return "collapsed"
    if row.want == "high":
        return "holds"
    if row.recovered is None:
        return "target forgets" if row.had_forgotten else "had not forgotten"
    if row.recovered_ci is not None and row.recovered_ci[1] < RECOVERED:
        return "forgets" if row.utility is not None else "forgets (utility not measured)"
    shown = all(half is not None and half < away for away, half in _clearances(row))
    return "recovers" if shown and row.recovered >= RECOVERED else "not decided"


def _clearances(row: RecoveryRow) -> list[tuple[float, float | None]]:
    """What must lie above 0 for ``recovers``: how far it does, and how far its interval reaches
    down from it; None where it has no end.
    """
    figures = (row.leakage("change"), row.leakage("gap"), row.estimate("recovered"))
    return [(f.value, f.ci and f.value - f.ci[0]) for f in figures if f is not None]


def _samples_needed(row: RecoveryRow) -> int | None:
    """About how many samples would decide a row that is not decided, if its figures stayed.

    An interval's half shrinks as 1 / sqrt(n): change, gap and share must come clear of 0 where the
    share is at least 0.2, the share clear of 0.2 where it is less. None: the row is decided, an
    interval has no end, or no number of samples would do.
    """
    if row.verdict != "not decided" or row.recovered is None:
        return None
    pairs = _clearances(row)
    if row.recovered < RECOVERED:
        ci = row.recovered_ci
        pairs = [(RECOVERED - row.recovered, None if ci is None else ci[1] - row.recovered)]
    times = [half / away for away, half in pairs if half is not None and away > 0]
    if len(times) < len(pairs):
        return None
    needed = math.ceil(row.n * max(times) ** 2) + 1
    return needed if needed <= MOST_SAMPLES else None


def mark_significant(rows: Sequence[RecoveryRow]) -> list[RecoveryRow]:
    """Holm's correction over the changes of all forget tasks; a row whose change does not hold is
    no longer said to recover.
    """
    marked = list(rows)
    family = [i for i, row in enumerate(rows) if row.want != "high" and row.p is not None]
    for i, holds in zip(family, holm([rows[i].p or 0.0 for i in family]), strict=True):
        verdict = rows[i].verdict
        if verdict == "recovers" and not holds:
            verdict = "not decided"
        marked[i] = rows[i].model_copy(update={"significant": holds, "verdict": verdict})
    return marked
