"""Points, standard errors and 95% intervals. The bootstrap is scipy's, seeded.

Percentile intervals, because they stay defined where every sample scores the same, as when a
target model recites all texts; the bias-corrected kind is NaN there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import MetricError

RESAMPLES = 2000
CONFIDENCE = 0.95

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error and 95% interval; both are None for a single sample."""

    value: float
    stderr: float | None = None
    ci: tuple[float, float] | None = None

    def scaled(self, factor: float, offset: float = 0.0) -> Estimate:
        """The estimate of ``factor x value + offset``, factor above 0."""
        ci = None if self.ci is None else tuple(factor * end + offset for end in self.ci)
        stderr = None if self.stderr is None else factor * self.stderr
        return Estimate(factor * self.value + offset, stderr, ci)  # type: ignore[arg-type]

    def with_value(self, value: float) -> Estimate:
        """The same spread around a value that was computed exactly."""
        return replace(self, value=value)


def _finite(values: Sequence[float] | Array) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise MetricError("no samples: an average over nothing is no measurement")
    if not np.isfinite(array).all():
        raise MetricError("a score is NaN or infinite; it cannot be averaged")
    return array


def _interval(
    data: tuple[Array, ...], statistic: Callable[..., Array], value: float, seed: int
) -> Estimate:
    from scipy.stats import bootstrap

    if min(len(column) for column in data) < 2:
        return Estimate(value)
    result = bootstrap(
        data,
        statistic,
        n_resamples=RESAMPLES,
        batch=100,
        vectorized=True,
        axis=-1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = result.confidence_interval
    return Estimate(value, float(result.standard_error), (float(low), float(high)))


def bootstrap_mean(values: Sequence[float], seed: int) -> Estimate:
    """Mean of ``values``, shape (n,), with stderr = s / sqrt(n) and a bootstrap interval.

    Raises:
        MetricError: no values, or one that is not finite.
    """
    array = _finite(values)
    spread = _interval((array,), np.mean, float(array.mean()), seed)
    if len(array) < 2:
        return spread
    return replace(spread, stderr=float(array.std(ddof=1) / math.sqrt(len(array))))


def auc(members: Sequence[float] | Array, nonmembers: Sequence[float] | Array) -> float:
    """Probability that a non-member scores below (looks more like a member than) a member, ties
    counting half. Near 0: members are recognised. Shapes (m,), (n,); scores lower = member.

    Raises:
        MetricError: an empty group, or a score that is not finite.

    Example:
        >>> auc([1.0, 2.0], [3.0, 4.0])
        0.0
    """
    from sklearn.metrics import roc_auc_score

    low, high = _finite(members), _finite(nonmembers)
    labels = np.concatenate([np.ones(len(low)), np.zeros(len(high))])
    return float(roc_auc_score(labels, np.concatenate([low, high])))


def _wins(members: Array, nonmembers: Array) -> Array:
    """1 where a member's score lies above a non-member's, 1/2 at ties: the mean is ``auc``."""
    difference = members[:, None] - nonmembers
    return np.asarray((difference > 0) + 0.5 * (difference == 0))


def _times_drawn(rows: Array, n: int) -> Array:
    """How often each of ``n`` texts is in each draw of row numbers, shape (..., n)."""
    draws = rows.astype(np.intp).reshape(-1, n)
    apart = draws + n * np.arange(len(draws))[:, None]
    return np.bincount(apart.ravel(), minlength=draws.size).reshape(rows.shape).astype(float)


def _auc_of_draws(wins: Array, low: Array, high: Array) -> Array:
    """``auc`` of resamples given as row numbers; all comparisons were made once, in ``wins``."""
    drawn = _times_drawn(low, wins.shape[0]), _times_drawn(high, wins.shape[1])
    return np.asarray(((drawn[0] @ wins) * drawn[1]).sum(axis=-1) / wins.size)


def _row_numbers(wins: Array) -> tuple[Array, Array]:
    return np.arange(wins.shape[0], dtype=float), np.arange(wins.shape[1], dtype=float)


def bootstrap_auc(members: Array, nonmembers: Array, seed: int) -> Estimate:
    """``auc`` with bootstrap standard error and interval, the two groups resampled apart."""
    wins = _wins(_finite(members), _finite(nonmembers))
    value = float(wins.mean())  # ``auc`` without its second sort

    def statistic(low: Array, high: Array, axis: int = -1) -> Array:
        return _auc_of_draws(wins, low, high)

    return _interval(_row_numbers(wins), statistic, value, seed)


def bootstrap_privleak(
    scores: tuple[Array, Array], reference: tuple[Array, Array], seed: int
) -> Estimate:
    """PrivLeak's spread when the reference is itself measured: a text is drawn in both runs or in
    neither. ``scores`` and ``reference``: (members, non-members) of the two models, same texts.

    With few texts a resample of the reference can have an AUC of 0, where PrivLeak is not defined;
    then there is no interval, rather than one over the resamples that happened to work.

    Raises:
        MetricError: the two runs have different numbers of texts, or the reference's AUC is 0.
    """
    if [len(x) for x in scores] != [len(x) for x in reference]:
        raise MetricError("the reference has another number of texts than this run")

    wins = _wins(*map(_finite, scores)), _wins(*map(_finite, reference))

    def statistic(low: Array, high: Array, axis: int = -1) -> Array:
        ours, theirs = (_auc_of_draws(part, low, high) for part in wins)
        if not (theirs > 0).all():
            raise ZeroDivisionError
        return (ours - theirs) / theirs * 100

    rows = _row_numbers(wins[0])
    try:
        value = float(statistic(*rows))
    except ZeroDivisionError:
        raise MetricError("the reference's AUC is 0, where PrivLeak is not defined") from None
    try:
        return _interval(rows, statistic, value, seed)
    except ZeroDivisionError:
        return Estimate(value)
