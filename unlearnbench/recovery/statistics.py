"""Full precision against quantized: what comes back, with intervals and a verdict.

Pure statistics over aligned scores; ``compare`` reads them from runs. docs/protocol.md says what
the numbers mean. PrivLeak is measured on the same footing as the ROUGE tasks: it is affine in the
AUC, so a recovered share is a ratio of AUC differences, and lower means closer to the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from unlearnbench.metrics.intervals import (
    Draws,
    Estimate,
    Values,
    holm,
    mean,
    narrower,
    pair_wins,
    ratio,
)

MIN_GAP = 5.0
"""Points; below it there was nothing that could come back, and no share."""
TARGET_KEEPS = 0.5
"""The least share of its full-precision score that the target must keep at a precision, on tasks
where low is good: below it the target itself forgets there, and no share is given.
"""
RECOVERED = 0.2
"""The share from which knowledge counts as recovered."""
UTILITY_FLOOR = 0.5
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
Bounds = tuple[float, float]


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
        # Much alike models: the difference of their AUCs is bounded better than their ratio.
        other = self.difference(values.minus(self.zero)).ci
        found = found.scaled(1, -100)
        return Estimate(found.value, narrower(found.ci, other))

    def difference(self, values: Values) -> Estimate:
        """The mean of differences of scores, on the task's scale."""
        if self.zero is None:
            return mean(values, self.draws)
        return ratio(values, self.zero, self.draws).scaled(100)

    def above_zero(self, values: Values) -> Values:
        """Scores whose mean is 0 where the task's value is."""
        return values if self.zero is None else values.minus(self.zero)

    @property
    def leaks(self) -> int:
        """The sign of a change towards more leakage."""
        return -1 if self.want == "zero" else 1


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


def generation_scores(scores: Sequence[float]) -> Values:
    """Records' scores, 0 to 1, as points."""
    return Values(100 * np.asarray(scores, dtype=np.float64), (0.0, 100.0))


def leak_scores(members: Sequence[float], nonmembers: Sequence[float]) -> Values:
    """Pairs of texts, whose mean is the AUC."""
    return Values(pair_wins(members, nonmembers), (0.0, 1.0))


def measure(cell: Cell) -> dict[str, object]:
    """The figures of one row, by ``RecoveryRow``'s field names; verdict and utility apart.

    Raises:
        MetricError: a score is not finite, or the retrained model's AUC is 0.
    """
    scale, draws = cell.scale, cell.scale.draws
    moved, gap = cell.quantized.minus(cell.full), cell.target.minus(cell.full)
    found = {
        "full": scale.value(cell.full),
        "quantized": scale.value(cell.quantized),
        "target": scale.value(cell.target),
        "retrained": scale.value(cell.retrained),
        "excess": excess(scale, cell.quantized, cell.retrained, cell.same_as_retrained),
        "change": scale.difference(moved),
    }
    fields: dict[str, object] = {}
    for name, part in found.items():
        fields |= {name: part.value, f"{name}_ci": part.ci}
    fields["p"] = mean(moved, draws).p
    target_full = scale.value(cell.target_full).value
    fields["target_full"] = target_full
    keeps = target_keeps(scale.want, found["target"].value, target_full)
    if scale.want != "high" and keeps and scale.leaks * scale.difference(gap).value >= MIN_GAP:
        share = ratio(moved, gap, draws)
        fields |= {"recovered": share.value, "recovered_ci": share.ci}
    if keeps and abs(found["target"].value) >= MIN_GAP:
        kept = scale.above_zero(cell.quantized), scale.above_zero(cell.target)
        share = ratio(*kept, draws)
        fields |= {"retained": share.value, "retained_ci": share.ci}
    if abs(target_full) >= MIN_GAP:
        fields["retained_full"] = found["quantized"].value / target_full
    return fields


def target_keeps(want: Want, target: float, target_full: float) -> bool:
    """Whether the target, at a precision, still has what could come back there."""
    return want != "low" or target >= TARGET_KEEPS * target_full


def had_forgotten(want: Want, full: float, target_full: float) -> bool:
    """Whether the unlearned model is away from the target, both in full precision."""
    return (target_full - full) * (-1 if want == "zero" else 1) >= MIN_GAP


def excess(scale: Scale, values: Values, retrained: Values, same: bool) -> Estimate:
    """How far a model's value lies above the retrained model's."""
    if same:
        return Estimate(0.0, (0.0, 0.0))
    return scale.difference(values.minus(retrained)) if scale.zero is None else scale.value(values)


def verdict_of(fields: dict[str, object], want: Want, floor: float) -> Verdict:
    """PROTOCOL's verdict on a row's figures. ``floor``: the least utility that is no collapse.

    ``target forgets`` where there is no share because the target at that precision has forgotten
    too, although the unlearned model had forgotten.
    """
    row = _Figures.of(fields)
    if row.utility is not None and row.utility < floor:
        return "collapsed"
    if want == "high":
        return "holds"
    sign = -1 if want == "zero" else 1
    if row.recovered is None:
        forgot = had_forgotten(want, row.full, row.target_full)
        return "target forgets" if forgot else "had not forgotten"
    toward = _toward(row.change_ci, sign)
    if toward is not None and toward[0] > 0 and row.recovered >= RECOVERED:
        return "recovers"
    if row.recovered_ci is not None and row.recovered_ci[1] < RECOVERED:
        return "forgets"
    return "not decided"


def _toward(ci: Bounds | None, sign: int) -> Bounds | None:
    """The interval of a change towards leakage."""
    return ci if ci is None or sign > 0 else (-ci[1], -ci[0])


@dataclass(frozen=True)
class _Figures:
    full: float
    target_full: float
    change: float
    change_ci: Bounds | None
    recovered: float | None
    recovered_ci: Bounds | None
    utility: float | None

    @staticmethod
    def of(fields: dict[str, object]) -> _Figures:
        names = ["full", "target_full", "change", "change_ci"]
        names += ["recovered", "recovered_ci", "utility"]
        return _Figures(*(fields.get(name) for name in names))  # type: ignore[arg-type]


def samples_needed(fields: dict[str, object], n: int, want: Want) -> int | None:
    """About how many samples would decide a row that is not decided, if its figures stayed.

    An interval's half shrinks as 1 / sqrt(n): the change's must come clear of 0 where the share is
    at least 0.2, the share's clear of 0.2 where it is less. None: the interval has no end, or no
    number of samples would do.
    """
    row = _Figures.of(fields)
    if row.recovered is None:
        return None
    if row.recovered >= RECOVERED:
        toward = _toward(row.change_ci, -1 if want == "zero" else 1)
        away = abs(row.change)
        half = None if toward is None else away - toward[0]
    else:
        away = RECOVERED - row.recovered
        half = None if row.recovered_ci is None else row.recovered_ci[1] - row.recovered
    if half is None or away <= 0:
        return None
    needed = math.ceil(n * (half / away) ** 2) + 1
    return needed if needed <= MOST_SAMPLES else None


def mark_significant(rows: Sequence[RecoveryRow]) -> list[RecoveryRow]:
    """Holm's correction over the changes of all forget tasks."""
    family = [i for i, row in enumerate(rows) if row.want != "high" and row.p is not None]
    held = holm([rows[i].p or 0.0 for i in family])
    marked = list(rows)
    for i, holds in zip(family, held, strict=True):
        marked[i] = rows[i].model_copy(update={"significant": holds})
    return marked
