"""Full precision against quantized: what comes back, with intervals.

Pure statistics over aligned scores; ``compare`` reads them from runs. docs/protocol.md says what
the numbers mean. PrivLeak is measured on the same footing as the ROUGE tasks: it is affine in the
AUC, so a recovered share is a ratio of AUC differences, and lower means closer to the target.
Several trainings (seeds) of one recipe make one row: the mean over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unlearnbench.metrics.intervals import (
    Draws,
    Estimate,
    Values,
    mean,
    pooled,
    ratio,
    with_trainings,
)
from unlearnbench.metrics.membership import LEAST_REFERENCE, leak_estimate, pair_wins, privleak
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.verdicts import (
    GONE,
    MIN_GAP,
    RecoveryRow,
    Want,
    judge,
    samples_needed,
    target_keeps,
)


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
        ends = -100.0, privleak(1.0, self.zero.mean)
        return with_trainings(found, singles, self.draws.confidence, ends)

    def difference(self, models: Sequence[Values]) -> Estimate:
        """The mean of differences of scores, on the task's scale."""
        if self.zero is not None:
            found = self.share(models, [self.zero] * len(models)).scaled(100)
            return found if self.zero.mean >= LEAST_REFERENCE else Estimate(found.value)
        every = pooled(models)
        found, singles = mean(every, self.draws), [values.mean for values in models]
        return with_trainings(found, singles, self.draws.confidence, every.bounds)

    def excess(self, models: Sequence[Values], retrained: Values, same: bool) -> Estimate:
        """How far a model's value lies above the retrained model's; ``same``: it is that model."""
        if same:
            return Estimate(0.0, (0.0, 0.0))
        if self.zero is not None:
            return replace(self, zero=retrained).value(models)
        return self.difference([values.minus(retrained) for values in models])

    def share(
        self, tops: Sequence[Values], bottoms: Sequence[Values], least: float = -math.inf
    ) -> Estimate:
        """The ratio of means over all trainings, which cannot be below ``least``."""
        top, bottom = pooled(tops), pooled(bottoms)
        found = ratio(top, bottom, self.draws)
        pairs = zip(tops, bottoms, strict=True)
        apart = [(t.mean - found.value * b.mean) / bottom.mean for t, b in pairs]
        return with_trainings(found, apart, self.draws.confidence, (least, math.inf))

    def share_above_zero(self, models: Sequence[Values], others: Sequence[Values]) -> Estimate:
        """The ratio of two models' values."""
        if self.zero is not None:
            models = [values.minus(self.zero) for values in models]
            others = [values.minus(self.zero) for values in others]
        return self.share(models, others, least=0.0 if self.zero is None else -math.inf)


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
    control: Values | None = None
    """The retrained model under the same condition, where that may teach."""


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
    gaps, base, net = [cell.target.minus(full) for full in cell.full], cell.retrained, moved
    taught: dict[str, Estimate | None] = {}
    if cell.control is not None:
        base, gained = cell.control, cell.control.minus(cell.retrained)
        net = [change.minus(gained) for change in moved]
        taught = {"taught": scale.difference([gained]), "net": scale.difference(net)}
    figures: dict[str, Estimate | None] = {
        "full": scale.value(cell.full),
        "quantized": scale.value(cell.quantized),
        "target": scale.value([cell.target]),
        "retrained": scale.value([cell.retrained]),
        "excess": scale.excess(cell.quantized, base, cell.same_as_retrained),
        "change": scale.difference(moved),
        "forgotten": scale.difference([cell.target_full.minus(full) for full in cell.full]),
        "gap": scale.difference(gaps),
        "utility": cell.utility,
        **taught,
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
        figures["recovered"] = scale.share(net, gaps)
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
    fields |= {"p": replace(scale, zero=None).difference(net).p, "target_full": target_full}
    fields |= {"empty_outputs": cell.empty_outputs}
    row = RecoveryRow(**fields, verdict="not decided")
    row = row.model_copy(update={"verdict": judge(row, floor)})
    return row.model_copy(update={"samples_needed": samples_needed(row)})
