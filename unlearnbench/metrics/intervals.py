"""Means, AUCs, ratios and shares with their 95% bootstrap intervals; every draw is seeded.

A run's own figures (``bootstrap_*``) have percentile intervals, which stay defined where every
sample scores the same, as when a target model recites all texts.

What a comparison states (``mean``, ``ratio``) is studentized (bootstrap-t, Efron and Tibshirani
1993, section 12.5); a ratio's interval is Fieller's, with the bootstrap's quantiles in place of
Student's. Percentile intervals cover too little there: answers are few, bounded and heaped at 0
and 1. Where almost all samples are alike, no resample knows of the others, and the interval is the
exact one for bounded values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import MetricError

CONFIDENCE = 0.95
RESAMPLES = 2000  # of a percentile interval
STUDENT_RESAMPLES = 9999
PAIR_RESAMPLES = 1999  # each costs m x n
MOST_COUNTS = 20_000_000
# With fewer samples that differ from the rest, more than 0.7% of the resamples hold none of them.
FEW = 5

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Bounds = tuple[float, float]


@dataclass(frozen=True)
class Estimate:
    """A value, and how far its samples say that it may be off."""

    value: float
    ci: Bounds | None = None
    """None where the samples do not bound it: a single one, or a denominator that may be 0."""
    stderr: float | None = None
    """Of a run's own figures, with more than one sample."""
    p: float | None = None
    """Of a comparison's means: two-sided, against 0."""

    def scaled(self, factor: float, offset: float = 0.0) -> Estimate:
        """The estimate of ``factor x value + offset``, factor above 0."""
        ci = self.ci and (factor * self.ci[0] + offset, factor * self.ci[1] + offset)
        stderr = None if self.stderr is None else factor * self.stderr
        return Estimate(factor * self.value + offset, ci, stderr)


def finite(values: Sequence[float] | Array) -> Array:
    """The values as an array; MetricError where there are none, or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise MetricError("no samples: an average over nothing is no measurement")
    if not np.isfinite(array).all():
        raise MetricError("a score is NaN or infinite; it cannot be averaged")
    return array


@lru_cache(maxsize=2)  # a task's attacks are all of the same texts
def _resamples(sizes: tuple[int, ...], seed: int, times: int) -> list[tuple[Rows, ...]]:
    """Row numbers drawn with replacement from groups of ``sizes``, 100 resamples a batch."""
    rng = np.random.default_rng(seed)
    batches = (min(100, times - start) for start in range(0, times, 100))
    return [tuple(rng.integers(0, n, (batch, n)) for n in sizes) for batch in batches]


def _percentile(
    value: float, sizes: tuple[int, ...], seed: int, statistic: Callable[..., Array]
) -> Estimate:
    """``value`` with the spread of a statistic of row numbers; without, where it is not defined in
    some resample, rather than with that of the resamples that happened to work.
    """
    if min(sizes) < 2:
        return Estimate(value)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = np.concatenate([statistic(*rows) for rows in _resamples(sizes, seed, RESAMPLES)])
    if not np.isfinite(drawn).all():
        return Estimate(value)
    return Estimate(value, _middle(drawn), float(drawn.std(ddof=1)))


def _middle(drawn: Array) -> Bounds:
    """95% of a bootstrap distribution."""
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def bootstrap_mean(values: Sequence[float], seed: int) -> Estimate:
    """Mean of ``values``, shape (n,), with stderr = s / sqrt(n) and a percentile interval."""
    array = finite(values)
    value, n = float(array.mean()), len(array)
    found = _percentile(value, (n,), seed, lambda rows: array[rows].mean(axis=-1))
    return found if n < 2 else replace(found, stderr=float(array.std(ddof=1) / math.sqrt(n)))


def auc(members: Sequence[float] | Array, nonmembers: Sequence[float] | Array) -> float:
    """Probability that a non-member scores below (looks more like a member than) a member, ties
    counting half. Near 0: members are recognised. Shapes (m,), (n,); scores lower = member.

    Example:
        >>> auc([1.0, 2.0], [3.0, 4.0])
        0.0
    """
    from sklearn.metrics import roc_auc_score

    low, high = finite(members), finite(nonmembers)
    labels = np.concatenate([np.ones(len(low)), np.zeros(len(high))])
    return float(roc_auc_score(labels, np.concatenate([low, high])))


def pair_wins(members: Sequence[float] | Array, nonmembers: Sequence[float] | Array) -> Array:
    """Shape (m, n), mean ``auc``: 1 where the member scores above the non-member, 1/2 for a tie."""
    low, high = finite(members)[:, None], finite(nonmembers)[None, :]
    return np.asarray((low > high) + 0.5 * (low == high))


def _auc_of(wins: Array, low: Rows, high: Rows) -> Array:
    """``auc`` of resamples given as row numbers; all comparisons were made once, in ``wins``."""
    drawn = []
    for rows, n in zip((low, high), wins.shape, strict=True):
        apart = rows + n * np.arange(len(rows))[:, None]
        drawn.append(np.bincount(apart.ravel(), minlength=rows.size).reshape(rows.shape))
    # Whole numbers and halves below 2^23: single precision is exact, and half the work.
    above = drawn[0].astype(np.float32) @ wins.astype(np.float32)
    return np.asarray((above.astype(np.float64) * drawn[1]).sum(axis=-1) / wins.size)


def bootstrap_auc(members: Array, nonmembers: Array, seed: int) -> Estimate:
    """``auc`` with bootstrap standard error and interval, the two groups resampled apart."""
    wins = pair_wins(members, nonmembers)
    value = float(wins.mean())
    return _percentile(value, wins.shape, seed, lambda low, high: _auc_of(wins, low, high))


def bootstrap_privleak(
    scores: tuple[Array, Array], reference: tuple[Array, Array], seed: int
) -> Estimate:
    """PrivLeak's spread when the reference is itself measured: a text is drawn in both runs or in
    neither. ``scores`` and ``reference``: (members, non-members) of the two models, same texts.
    With few texts a resample of the reference can have an AUC of 0; then there is no interval.
    """
    if [len(x) for x in scores] != [len(x) for x in reference]:
        raise MetricError("the reference has another number of texts than this run")
    ours, theirs = pair_wins(*scores), pair_wins(*reference)
    base = float(theirs.mean())
    if base == 0:
        raise MetricError("the reference's AUC is 0, where PrivLeak is not defined")

    def statistic(low: Rows, high: Rows) -> Array:
        zero = _auc_of(theirs, low, high)
        return (_auc_of(ours, low, high) - zero) / zero * 100

    return _percentile((float(ours.mean()) - base) / base * 100, ours.shape, seed, statistic)


@dataclass(frozen=True)
class Draws:
    """Resamples that all figures of a comparison share."""

    rows: Array
    """How often each sample is in each resample, over its number: shape (resamples, n)."""
    others: Array | None = None
    """The same for the second group of a two-sample statistic."""
    confidence: float = CONFIDENCE

    @property
    def tail(self) -> float:
        """The probability beyond each end of an interval."""
        return (1 - self.confidence) / 2


def draw(n: int, seed: int, others: int | None = None, confidence: float = CONFIDENCE) -> Draws:
    """Resamples of ``n`` samples, and of a second group of ``others``; the same for a seed."""
    most = STUDENT_RESAMPLES if others is None else PAIR_RESAMPLES
    resamples = max(199, min(most, MOST_COUNTS // max(n, others or 0)))
    second = None if others is None else _counts(others, seed + 1_000_003, resamples)
    return Draws(_counts(n, seed, resamples), second, confidence)


@lru_cache(maxsize=8)
def _counts(n: int, seed: int, resamples: int) -> Array:
    rng = np.random.default_rng([seed, n])
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    counts.flags.writeable = False
    return counts


@dataclass(frozen=True)
class Values:
    """One value a sample, shape (n,); or one for every pair of two groups, shape (m, n)."""

    values: Array
    bounds: Bounds
    """What no value can leave."""

    def __post_init__(self) -> None:
        finite(self.values)

    @property
    def mean(self) -> float:
        """The plain mean."""
        return float(self.values.mean())

    @property
    def n(self) -> int:
        """Samples; of pairs, those of the smaller group."""
        return int(min(self.values.shape))

    def minus(self, other: Values, factor: float = 1.0) -> Values:
        """``self - factor x other``, sample by sample."""
        if self.values.shape != other.values.shape:
            raise MetricError("paired scores need the same samples on both sides")
        ends = [factor * end for end in other.bounds]
        bounds = self.bounds[0] - max(ends), self.bounds[1] - min(ends)
        return Values(self.values - factor * other.values, bounds)

    def scaled(self, factor: float) -> Values:
        """Every value ``factor`` times, factor above 0."""
        return Values(factor * self.values, (factor * self.bounds[0], factor * self.bounds[1]))

    def parts(self) -> list[Array]:
        """What the standard error is made of: each sample's value; of pairs, its mean over the
        other group (DeLong, DeLong and Clarke-Pearson 1988).
        """
        values = self.values
        return [values] if values.ndim == 1 else [values.mean(axis=1), values.mean(axis=0)]

    def resampled(self, draws: Draws) -> tuple[Array, Array]:
        """Mean and variance of the mean, of each resample; the groups of pairs are drawn apart."""
        if self.values.ndim == 1:
            means = draws.rows @ self.values
            spread = draws.rows @ (self.values - self.mean) ** 2 - (means - self.mean) ** 2
            return means, np.maximum(spread, 0) / (self.n - 1)
        if draws.others is None:
            raise MetricError("pairs need resamples of both groups")
        second, first = draws.rows @ self.values, draws.others @ self.values.T
        means = (second * draws.others).sum(axis=1)
        variance = np.zeros_like(means)
        for drawn, weights in ((first, draws.rows), (second, draws.others)):
            spread = ((drawn - means[:, None]) ** 2 * weights).sum(axis=1)
            variance += spread / (weights.shape[1] - 1)
        return means, variance

    def outliers(self) -> tuple[float, int, int]:
        """The commonest value, and how many samples lie above and below it."""
        parts = [part.round(12) for part in self.parts()]
        distinct, counts = np.unique(min(parts, key=len), return_counts=True)
        usual, each = float(distinct[counts.argmax()]), np.concatenate(parts)
        return usual, int((each > usual).sum()), int((each < usual).sum())

    @property
    def is_sparse(self) -> bool:
        """Whether too few samples differ from the rest for a resample to tell of them."""
        return sum(self.outliers()[1:]) < FEW


def _covariance(values: Values, other: Values) -> float:
    """Of the means of two values of the same samples; with itself, the squared standard error."""
    total = 0.0
    for part, twin in zip(values.parts(), other.parts(), strict=True):
        n = len(part)
        total += float(((part - part.mean()) * (twin - twin.mean())).sum() / (n - 1) / n)
    return total


def _student(values: Values, draws: Draws) -> Array:
    """The studentized means of the resamples, around the mean of ``values``."""
    means, variance = values.resampled(draws)
    away = means - values.mean
    tiny = 1e-9 * max(1e-300, float(np.abs(values.values).max()))
    away[np.abs(away) <= tiny] = 0.0
    # A resample of equal values has no error of its own: it lies beyond every bound, not at NaN.
    error = np.maximum(np.sqrt(variance), tiny)
    return np.where(error > tiny, away / error, np.sign(away) * 1e12)


def _quantiles(t: Array, tail: float) -> Bounds:
    """The points with ``tail`` of the values beyond them, as order statistics: no average."""
    ordered = np.sort(t)
    k = max(1, int(tail * (len(ordered) + 1)))
    return float(ordered[k - 1]), float(ordered[-k])


def _exact(values: Values, tail: float) -> Bounds:
    """Bounds of the mean from how many samples differ alone (Clopper and Pearson 1934), each
    difference taken as large as values can be.
    """
    from scipy.stats import beta

    usual, *counts = values.outliers()
    # The largest share of samples above, and of those below.
    above, below = (
        1.0 if k >= values.n else float(beta.ppf(1 - tail, k + 1, values.n - k)) for k in counts
    )
    low, high = values.bounds
    return usual - (usual - low) * below, usual + (high - usual) * above


def mean(values: Values, draws: Draws) -> Estimate:
    """The mean with its interval and p-value; pairs need resamples of both groups."""
    point, tail = values.mean, draws.tail
    if values.n < 2:
        return Estimate(point)
    exact = _exact(values, tail)
    if values.is_sparse:
        return Estimate(point, exact, p=1.0 if exact[0] <= 0 <= exact[1] else 2 * tail)
    t = _student(values, draws)
    error = math.sqrt(_covariance(values, values))
    low, high = _quantiles(t, tail)
    bounds = max(point - high * error, exact[0]), min(point - low * error, exact[1])
    p = (1 + int((np.abs(t) >= abs(point) / error).sum())) / (1 + len(t))
    return Estimate(point, bounds, p=p)


def ratio(top: Values, bottom: Values, draws: Draws) -> Estimate:
    """``mean(top) / mean(bottom)`` over the same samples, with its interval; MetricError where the
    denominator is 0.
    """
    if bottom.mean == 0:
        raise MetricError("a ratio with a denominator of 0 is no measurement")
    point = top.mean / bottom.mean + 0.0  # never -0
    rest = top.minus(bottom, point)
    if top.n < 2:
        return Estimate(point)
    # Two models that answer almost all alike differ by little, however little is known of either.
    below = mean(bottom, draws)
    apart = _quotient(mean(top.minus(bottom), draws), below)
    ci = narrower(_quotient(mean(top, draws), below), apart and (1 + apart[0], 1 + apart[1]))
    if not (top.is_sparse or bottom.is_sparse or rest.is_sparse):
        ci = narrower(_fieller(top, bottom, _quantiles(_student(rest, draws), draws.tail)), ci)
    return Estimate(point, ci)


def narrower(ci: Bounds | None, safe: Bounds | None) -> Bounds | None:
    """What two intervals share: with some odd samples among many alike, the studentized one runs
    far out on one side.
    """
    if ci is None or safe is None:
        return ci or safe
    return max(ci[0], safe[0]), min(ci[1], safe[1])


def _quotient(top: Estimate, bottom: Estimate) -> Bounds | None:
    """Bounds of a quotient from those of its parts: wide, and safe."""
    if top.ci is None or bottom.ci is None or bottom.ci[0] <= 0 <= bottom.ci[1]:
        return None
    ends = [a / b for a in top.ci for b in bottom.ci]
    return min(ends), max(ends)


def _fieller(top: Values, bottom: Values, limits: Bounds) -> Bounds | None:
    """Every r for which ``mean(top - r bottom)``, studentized, is within ``limits`` (Fieller 1954):
    between roots of ``(a - r b)^2 = t^2 variance(a - r b)``. None where that is no interval.
    """
    a, b, (low, high) = top.mean, bottom.mean, limits
    if b < 0:
        a, b, low, high = -a, -b, -high, -low
    a_error, b_error = _covariance(top, top), _covariance(bottom, bottom)
    both = _covariance(top, bottom)
    ends = []
    for t, side in ((high, -1), (low, 1)):
        lead, half = b * b - t * t * b_error, a * b - t * t * both
        if not math.isfinite(t) or lead <= 0:
            return None
        root = math.sqrt(max(0.0, half * half - lead * (a * a - t * t * a_error)))
        ends.append((half + side * root) / lead)
    return ends[0], ends[1]


def mean_share(pairs: Sequence[tuple[Array, Array, Draws]]) -> Estimate:
    """The mean of several ratios of means, each ``ours / theirs`` over the samples of its draws,
    with a percentile interval over the samples: the pairs are all there are, not a sample of them.
    """
    points = finite([float(ours.mean() / theirs.mean()) for ours, theirs, _ in pairs])
    drawn = [(draws.rows @ ours) / (draws.rows @ theirs) for ours, theirs, draws in pairs]
    means = np.mean([column[: min(map(len, drawn))] for column in drawn], axis=0)
    return Estimate(float(points.mean()), _middle(finite(means)))


def holm(p_values: list[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of a family of tests hold together at ``level`` (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [True, False, False]
    """
    held = [False] * len(p_values)
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[i] > level / (len(p_values) - rank):
            break
        held[i] = True
    return held
