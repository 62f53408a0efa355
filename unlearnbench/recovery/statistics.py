"""Full precision against quantized: what comes back, with intervals and a verdict.

Pure statistics over aligned scores; ``compare`` reads them from runs. docs/protocol.md says what
the numbers mean. PrivLeak is measured on the same footing as the ROUGE tasks: it is affine in the
AUC, so a recovered share is a ratio of AUC differences, and lower means closer to the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    narrower,
    pair_wins,
    ratio,
)
from unlearnbench.recovery import UTILITY_FLOOR

MIN_GAP = 5.0
"""Points; below it there was nothing that could come back, and no share."""
TARGET_KEEPS = 0.5
"""The least share of its full-precision score that the target must keep at a precision, on tasks
where low is good: below it the target itself forgets there, and no share is given.
"""
RECOVERED = 0.2
"""The share from which knowledge counts as recovered."""
MOST_SAMPLES = 1_000_000

Want = Literal["low", "high", "zero"]
Verdict = Literal[
    "recovers",
    "forgets",
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
    recovered: float | None = None
    """``change / (target - full)``; absent below 5 points of denominator, where the target
    itself forgets, and on retain tasks."""
    recovered_ci: Bounds | None = None
    retained: float | None = None
    """``quantized / target``; absent where the target forgets or is within 5 points of 0."""
    retained_ci: Bounds | None = None
    retained_full: float | None = None
    """``quantized / target_full``."""
    utility: float | None = None
    """Retained knowledge over the full-precision target's; absent without a retain task."""
    utility_ci: Bounds | None = None
    verdict: Verdict
    samples_needed: int | None = None
    """Where not decided: about how many samples would settle it."""

    def estimate(self, name: str) -> Estimate | None:
        """A figure with its interval; None where it was not measured."""
        value = getattr(self, name)
        return None if value is None else Estimate(value, getattr(self, f"{name}_ci"))

    @property
    def had_forgotten(self) -> bool:
        """Whether the unlearned model is away from the target, both in full precision."""
        return _sign(self.want) * (self.target_full - self.full) >= MIN_GAP


def _sign(want: Want) -> int:
    """The sign of a change towards more leakage."""
    return -1 if want == "zero" else 1


@dataclass(frozen=True)
class Scale:
    """How a task's scores become its value: ROUGE is a mean; PrivLeak is 100 x mean / ``zero``."""

    want: Want
    draws: Draws
    zero: Values | None = None
    """The retrained model's pairs, whose mean is its AUC."""

    def value(self, values: Values) -> Estimate:
        """A model's value. PrivLeak's zero point is taken off last: the two AUCs' ratio is what is
        bounded where one of them is 0.
        """
        found = self.difference(values)
        if self.zero is None:
            return found
        found = found.scaled(1, -100)
        # Much alike models: the difference of their AUCs is bounded better than their ratio.
        other = self.difference(values.minus(self.zero)).ci
        return Estimate(found.value, narrower(found.ci, other))

    def difference(self, values: Values) -> Estimate:
        """The mean of differences of scores, on the task's scale."""
        if self.zero is None:
            return mean(values, self.draws)
        return ratio(values.scaled(100), self.zero, self.draws)

    def excess(self, values: Values, retrained: Values, same: bool) -> Estimate:
        """How far a model's value lies above the retrained model's; ``same``: it is that model."""
        if same:
            return Estimate(0.0, (0.0, 0.0))
        return self.difference(values.minus(retrained)) if self.zero is None else self.value(values)

    def share_above_zero(self, values: Values, others: Values) -> Estimate:
        """The ratio of two models' values."""
        if self.zero is not None:
            values, others = values.minus(self.zero), others.minus(self.zero)
        return ratio(values, others, self.draws)


@dataclass(frozen=True)
class Cell:
    """The scores behind one row, all over the same samples."""

    scale: Scale
    full: Values
    quantized: Values
    target: Values
    target_full: Values
    retrained: Values
    same_as_retrained: bool = False
    """The entry is the retrained model at full precision: no difference, and no doubt about it."""
    utility: Estimate | None = None


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
    scale, draws = cell.scale, cell.scale.draws
    moved, gap = cell.quantized.minus(cell.full), cell.target.minus(cell.full)
    quantized, target = scale.value(cell.quantized), scale.value(cell.target)
    figures: dict[str, Estimate | None] = {
        "full": scale.value(cell.full),
        "quantized": quantized,
        "target": target,
        "retrained": scale.value(cell.retrained),
        "excess": scale.excess(cell.quantized, cell.retrained, cell.same_as_retrained),
        "change": scale.difference(moved),
        "utility": cell.utility,
    }
    target_full = scale.value(cell.target_full).value
    keeps = target_keeps(scale.want, target.value, target_full)
    room = _sign(scale.want) * scale.difference(gap).value
    if scale.want != "high" and keeps and room >= MIN_GAP:
        figures["recovered"] = ratio(moved, gap, draws)
    if keeps and abs(target.value) >= MIN_GAP:
        figures["retained"] = scale.share_above_zero(cell.quantized, cell.target)
    fields: dict[str, Any] = {}
    for name, figure in figures.items():
        if figure is not None:
            fields |= {name: figure.value, f"{name}_ci": figure.ci}
    if abs(target_full) >= MIN_GAP:
        fields["retained_full"] = quantized.value / target_full
    fields |= {"entry": entry, "task": task, "precision": precision, "want": scale.want}
    fields |= {"n": len(cell.full.values), "p": mean(moved, draws).p, "target_full": target_full}
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
    least = _least_change(row)
    if least is not None and least > 0 and row.recovered >= RECOVERED:
        return "recovers"
    if row.recovered_ci is not None and row.recovered_ci[1] < RECOVERED:
        return "forgets"
    return "not decided"


def _least_change(row: RecoveryRow) -> float | None:
    """The bound of a change towards leakage that is nearer to none."""
    if row.change_ci is None:
        return None
    return -row.change_ci[1] if _sign(row.want) < 0 else row.change_ci[0]


def _samples_needed(row: RecoveryRow) -> int | None:
    """About how many samples would decide a row that is not decided, if its figures stayed.

    An interval's half shrinks as 1 / sqrt(n): the change's must come clear of 0 where the share is
    at least 0.2, the share's clear of 0.2 where it is less. None: the row is decided, the interval
    has no end, or no number of samples would do.
    """
    if row.verdict != "not decided" or row.recovered is None:
        return None
    if row.recovered >= RECOVERED:
        away, bound = abs(row.change), _least_change(row)
        half = None if bound is None else away - bound
    else:
        away, ci = RECOVERED - row.recovered, row.recovered_ci
        half = None if ci is None else ci[1] - row.recovered
    if half is None or away <= 0:
        return None
    needed = math.ceil(row.n * (half / away) ** 2) + 1
    return needed if needed <= MOST_SAMPLES else None


def mark_significant(rows: Sequence[RecoveryRow]) -> list[RecoveryRow]:
    """Holm's correction over the changes of all forget tasks."""
    marked = list(rows)
    family = [i for i, row in enumerate(rows) if row.want != "high" and row.p is not None]
    for i, holds in zip(family, holm([rows[i].p or 0.0 for i in family]), strict=True):
        marked[i] = rows[i].model_copy(update={"significant": holds})
    return marked
