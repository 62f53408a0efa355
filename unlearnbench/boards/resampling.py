"""What a board says of its entries together by drawing their samples again: how far ranks reach,
and how much of the target's scores the ranked entries keep on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.metrics.intervals import Array, Estimate, Values, average, pooled, ratio
from unlearnbench.recovery.compare import SEED, Comparison
from unlearnbench.recovery.controls import leaves_alone
from unlearnbench.recovery.verdicts import MIN_GAP, target_keeps
from unlearnbench.results import FULL
from unlearnbench.runs.entries import Entry, LoadedRun

RESAMPLES = 2000


@dataclass(frozen=True)
class RankRange:
    """Where an entry ranks in the resamples."""

    ranks: tuple[int, int]
    """The 2.5% and the 97.5% point of its rank."""
    first: float
    """The share of resamples in which no other is before it."""


def rank_ranges(
    comparison: Comparison, entries: Sequence[Entry], tasks: Sequence[str], at: Sequence[str]
) -> list[RankRange] | None:
    """Each entry's rank by its worst excess over the retrained model, over ``tasks`` and the
    precisions ``at``. None where the retrained model's AUC is 0 in a resample, so that PrivLeak is
    not defined there.
    """
    # Rounded, so that equal entries stay equal whatever the order of additions.
    worst = _worst_excesses(comparison, entries, tasks, at).round(9)
    if not np.isfinite(worst).all():
        return None
    found = []
    for own in worst:
        ranks = 1 + (worst < own).sum(axis=0)
        low, high = np.quantile(ranks, [0.025, 0.975], method="inverted_cdf")
        found.append(RankRange((int(low), int(high)), float((ranks == 1).mean())))
    return found


def _worst_excesses(
    comparison: Comparison, entries: Sequence[Entry], tasks: Sequence[str], at: Sequence[str]
) -> Array:
    """Shape (entries, resamples). A resample draws a task's samples once, the same for every entry
    and precision and for the retrained model; PrivLeak's two groups of texts are drawn apart. Of
    an entry of several trainings it draws these too, the same for all tasks.
    """
    worst = np.full((len(entries), RESAMPLES), -np.inf)
    rng = np.random.default_rng(SEED)
    counts = [len(entry.trainings) for entry in entries]
    seeds = [rng.multinomial(n, np.full(n, 1 / n), RESAMPLES).T / n for n in counts]
    for number, task in enumerate(tasks):
        retrained = comparison.retrained.full
        zero, rng = comparison.scores(retrained, task), np.random.default_rng([SEED, number])
        sizes = zero.values.shape
        drawn = [rng.multinomial(n, np.full(n, 1 / n), RESAMPLES) / n for n in sizes]
        bases = {p: _means(comparison.scores(comparison.base(p), task), drawn) for p in at}
        for entry, weights, own in zip(entries, seeds, worst, strict=True):
            for precision in at:
                models, base = comparison.models(entry, precision, task), bases[precision]
                means = sum(w * _means(m, drawn) for w, m in zip(weights, models, strict=True))
                if retrained.task(task).want == "zero":  # PrivLeak, which counts on either side
                    with np.errstate(divide="ignore", invalid="ignore"):
                        excess = 100 * np.abs(means / base - 1)
                else:
                    excess = means - base
                np.maximum(own, excess, out=own)
    return worst


def _means(scores: Values, drawn: Sequence[Array]) -> Array:
    """The mean of each resample; of pairs of texts, their AUC."""
    if len(drawn) == 1:
        return np.asarray(drawn[0] @ scores.values)
    return np.asarray((drawn[0] @ scores.values * drawn[1]).sum(axis=1))


@dataclass(frozen=True)
class MeanShares:
    """Means over a board's cells at one precision."""

    retained: Estimate
    """Of what entries score over what the target scores."""
    retrained: Estimate | None
    """The same of the retrained model; None where it has no run at that precision."""
    above: Estimate
    """Of both scores above the retrained model's in full precision (under a condition that may
    teach: under that condition): 0 for a model that never saw the texts, 1 for the target.
    """


def comparable_tasks(comparison: Comparison, tasks: Sequence[str], at: Sequence[str]) -> list[str]:
    """The forget tasks (low is good) whose shares mean something at every precision: the target
    keeps enough of its score there, and knows enough more than the retrained model, and none of
    them leaves the task unchanged.
    """

    def known(run: LoadedRun, task: str) -> float:
        return comparison.scores(run, task).mean

    def holds(task: str, precision: str) -> bool:
        full, now = (known(comparison.target.at(p), task) for p in (FULL, precision))
        room = now - known(comparison.base(precision), task)
        left = leaves_alone(comparison.target.at(precision), task)
        return target_keeps("low", now, full) and room >= MIN_GAP and not left

    return [task for task in tasks if all(holds(task, precision) for precision in at)]


def mean_shares(
    comparison: Comparison, entries: Sequence[Entry], tasks: Sequence[str], precision: str
) -> MeanShares:
    """The means over entries and tasks: those of the board, not a sample of methods."""

    def mean_of(entries: Sequence[Entry], *, above: bool) -> Estimate:
        found = []
        for task in tasks:
            theirs = comparison.scores(comparison.target.at(precision), task)
            zero = comparison.scores(comparison.base(precision), task)
            ours = pooled([pooled(comparison.models(e, precision, task)) for e in entries])
            if above:
                ours, theirs = ours.minus(zero), theirs.minus(zero)
            found.append(ratio(ours, theirs, comparison.scale(task).draws))
        return average(found)

    known = precision in comparison.retrained.runs
    return MeanShares(
        retained=mean_of(entries, above=False),
        retrained=mean_of([comparison.retrained], above=False) if known else None,
        above=mean_of(entries, above=True),
    )
