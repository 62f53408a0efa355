"""Paired bootstrap over samples: the mean of a column, and the ratio of two means.

The intervals are studentized (bootstrap-t, Efron and Tibshirani 1993, section 12.5); a ratio's is
Fieller's, with the bootstrap's quantiles in place of Student's. Percentile intervals cover too
little here: answers are few, bounded and heaped at 0 and 1. Where almost all samples are alike, no
resample knows of the others, and the interval is the exact one for bounded values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import MetricError

if TYPE_CHECKING:
    from typing_extensions import Self

RESAMPLES = 9999
PAIR_RESAMPLES = 1999  # each costs m x n
MOST_COUNTS = 20_000_000
CONFIDENCE = 0.95
# With fewer samples that differ from the rest, more than 0.7% of the resamples hold none of them.
FEW = 5

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """How often each sample is in each resample, over its number: shape (resamples, n).

    ``others`` is the same for the second group of a two-sample statistic.
    """

    rows: Array
    others: Array | None = None
    confidence: float = CONFIDENCE

    @property
    def tail(self) -> float:
        """The probability beyond each end of an interval."""
        return (1 - self.confidence) / 2


@lru_cache(maxsize=8)
def _counts(n: int, seed: int, resamples: int) -> Array:
    rng = np.random.default_rng([seed, n])
    counts = rng.multinomial(n, np.full(n, 1 / n), size=resamples) / n
    counts.flags.writeable = False
    return counts


def draw(n: int, seed: int, others: int | None = None, confidence: float = CONFIDENCE) -> Draws:
    """Resamples of ``n`` samples, and of a second group of ``others``; the same for a seed."""
    most = RESAMPLES if others is None else PAIR_RESAMPLES
    resamples = max(199, min(most, MOST_COUNTS // max(n, others or 0)))
    second = None if others is None else _counts(others, seed + 1_000_003, resamples)
    return Draws(_counts(n, seed, resamples), second, confidence)


@dataclass(frozen=True)
class _Values:
    values: Array
    bounds: tuple[float, float]
    """What no value can leave."""

    def __post_init__(self) -> None:
        if self.values.size == 0 or not np.isfinite(self.values).all():
            raise MetricError("no samples, or a score that is not finite: no interval for that")

    def minus(self, other: _Values, factor: float = 1.0) -> Self:
        """``self - factor x other``, sample by sample.

        Raises:
            MetricError: the two are not over the same samples.
        """
        if type(self) is not type(other) or self.values.shape != other.values.shape:
            raise MetricError("paired scores need the same samples on both sides")
        ends = [factor * end for end in other.bounds]
        bounds = self.bounds[0] - max(ends), self.bounds[1] - min(ends)
        return type(self)(self.values - factor * other.values, bounds)

    def scaled(self, factor: float) -> Self:
        """Every value ``factor`` times, factor above 0."""
        low, high = self.bounds
        return type(self)(factor * self.values, (factor * low, factor * high))


class Column(_Values):
    """One value a sample, shape (n,)."""

    def parts(self) -> tuple[Array, ...]:
        """What the standard error is made of: the deviation that each sample brings."""
        return (self.values,)

    def resampled(self, draws: Draws) -> tuple[Array, Array]:
        """Mean and variance of the mean, of each resample."""
        means = draws.rows @ self.values
        spread = draws.rows @ (self.values - self.values.mean()) ** 2
        spread -= (means - self.values.mean()) ** 2
        return means, np.maximum(spread, 0) / (len(self.values) - 1)


class Pairs(_Values):
    """One value for every pair of a sample of two groups, shape (m, n), as an AUC is made of."""

    def parts(self) -> tuple[Array, ...]:
        """The mean over the other group, for each sample (DeLong, DeLong and Clarke-Pearson)."""
        return (self.values.mean(axis=1), self.values.mean(axis=0))

    def resampled(self, draws: Draws) -> tuple[Array, Array]:
        """As for a column; the groups are drawn apart."""
        if draws.others is None:
            raise MetricError("pairs need resamples of both groups")
        second = draws.rows @ self.values
        first = draws.others @ self.values.T
        means = (second * draws.others).sum(axis=1)
        variance = np.zeros_like(means)
        for drawn, weights in ((first, draws.rows), (second, draws.others)):
            spread = ((drawn - means[:, None]) ** 2 * weights).sum(axis=1)
            variance += spread / (weights.shape[1] - 1)
        return means, variance


Values: TypeAlias = Column | Pairs


@dataclass(frozen=True)
class Ratio:
    """A mean or a ratio with its interval and two-sided p-value against 0.

    ``ci`` is None where the samples do not bound it: a single sample, or a denominator that may
    be 0. ``p`` is None with a single sample.
    """

    value: float
    ci: tuple[float, float] | None = None
    p: float | None = None


def _error(parts: tuple[Array, ...], other: tuple[Array, ...] | None = None) -> float:
    """Covariance of the means of two values of the same samples; a variance without ``other``."""
    total = 0.0
    for i, part in enumerate(parts):
        twin = part if other is None else other[i]
        n = len(part)
        total += float(((part - part.mean()) * (twin - twin.mean())).sum() / (n - 1) / n)
    return total


def _student(values: Values, draws: Draws) -> Array:
    """The studentized means of the resamples, around the mean of ``values``."""
    means, variance = values.resampled(draws)
    away = means - values.values.mean()
    tiny = 1e-9 * max(1e-300, float(np.abs(values.values).max()))
    away[np.abs(away) <= tiny] = 0.0
    # A resample of equal values has no error of its own: it lies beyond every bound, not at NaN.
    error = np.maximum(np.sqrt(variance), tiny)
    t: Array = np.where(error > tiny, away / error, np.sign(away) * 1e12)
    return t


def _quantiles(t: Array, tail: float) -> tuple[float, float]:
    """The points with ``tail`` of the values beyond them, as order statistics: nothing is averaged
    with a value beyond every bound.
    """
    ordered = np.sort(t)
    k = max(1, int(tail * (len(ordered) + 1)))
    return float(ordered[k - 1]), float(ordered[-k])


def _odd(values: Values) -> tuple[float, int, int, int]:
    """The commonest value, how many samples lie above and below it, and the number of samples."""
    parts = values.parts()
    smallest = min(parts, key=len)
    found, counts = np.unique(smallest.round(12), return_counts=True)
    usual = float(found[counts.argmax()])
    above = sum(int((part.round(12) > usual).sum()) for part in parts)
    below = sum(int((part.round(12) < usual).sum()) for part in parts)
    return usual, above, below, len(smallest)


def _is_sparse(values: Values) -> bool:
    _, above, below, _ = _odd(values)
    return above + below < FEW


def _exact(values: Values, tail: float) -> tuple[float, float]:
    """Bounds of the mean from how many samples differ alone (Clopper and Pearson 1934), each
    difference taken as large as values can be.
    """
    from scipy.stats import beta

    usual, above, below, n = _odd(values)

    def most(k: int) -> float:
        return 1.0 if k >= n else float(beta.ppf(1 - tail, k + 1, n - k))

    low, high = values.bounds
    return usual - (usual - low) * most(below), usual + (high - usual) * most(above)


def mean(values: Values, draws: Draws) -> Ratio:
    """The mean with its interval and p-value.

    Raises:
        MetricError: pairs without resamples of the second group.
    """
    point = float(values.values.mean())
    if min(values.values.shape) < 2:
        return Ratio(point)
    exact = _exact(values, draws.tail)
    if _is_sparse(values):
        return Ratio(point, exact, 1.0 if exact[0] <= 0 <= exact[1] else 2 * draws.tail)
    t = _student(values, draws)
    error = math.sqrt(_error(values.parts()))
    low, high = _quantiles(t, draws.tail)
    bounds = max(point - high * error, exact[0]), min(point - low * error, exact[1])
    p = (1 + int((np.abs(t) >= abs(point) / error).sum())) / (1 + len(t))
    return Ratio(point, bounds, p)


def ratio(top: Values, bottom: Values, draws: Draws) -> Ratio:
    """``mean(top) / mean(bottom)`` over the same samples, with its interval.

    Raises:
        MetricError: the denominator is 0, or the two are not over the same samples.
    """
    below = float(bottom.values.mean())
    if below == 0:
        raise MetricError("a ratio with a denominator of 0 is no measurement")
    point = float(top.values.mean()) / below + 0.0  # never -0
    rest = top.minus(bottom, point)
    if min(top.values.shape) < 2:
        return Ratio(point)
    safe = _safe(top, bottom, draws)
    if _is_sparse(top) or _is_sparse(bottom) or _is_sparse(rest):
        return Ratio(point, safe)
    return Ratio(point, narrower(_fieller(top, bottom, rest, draws), safe))


def _safe(top: Values, bottom: Values, draws: Draws) -> tuple[float, float] | None:
    """Bounds of a ratio from those of its parts, or of what its parts differ by: two models that
    answer almost all alike differ by little, however little is known of either.
    """
    below = mean(bottom, draws)
    rest = _quotient(mean(top.minus(bottom), draws), below)
    beside = None if rest is None else (1 + rest[0], 1 + rest[1])
    return narrower(_quotient(mean(top, draws), below), beside)


def narrower(
    ci: tuple[float, float] | None, safe: tuple[float, float] | None
) -> tuple[float, float] | None:
    """What two intervals share: with some odd samples among many alike, the studentized one runs
    far out on one side.
    """
    if ci is None or safe is None:
        return safe if ci is None else ci
    return max(ci[0], safe[0]), min(ci[1], safe[1])


def _quotient(top: Ratio, bottom: Ratio) -> tuple[float, float] | None:
    """Bounds of a quotient from those of its parts: wide, and safe."""
    if top.ci is None or bottom.ci is None or bottom.ci[0] <= 0 <= bottom.ci[1]:
        return None
    ends = [a / b for a in top.ci for b in bottom.ci]
    return min(ends), max(ends)


def _fieller(top: Values, bottom: Values, rest: Values, draws: Draws) -> tuple[float, float] | None:
    """Every ratio r for which ``mean(top - r bottom)`` is within the bootstrap's quantiles of 0
    (Fieller 1954); None where that is no interval.
    """
    a, b = float(top.values.mean()), float(bottom.values.mean())
    low, high = _quantiles(_student(rest, draws), draws.tail)
    if b < 0:
        a, b, low, high = -a, -b, -high, -low
    errors = _error(top.parts()), _error(bottom.parts()), _error(top.parts(), bottom.parts())
    lower, upper = _roots(a, b, errors, high), _roots(a, b, errors, low)
    if lower is None or upper is None:
        return None
    return lower[0], upper[1]


def _roots(
    a: float, b: float, errors: tuple[float, float, float], t: float
) -> tuple[float, float] | None:
    """The two r with ``(a - r b)^2 = t^2 variance(a - r b)``."""
    top, bottom, both = errors
    if not math.isfinite(t) or b * b <= t * t * bottom:
        return None
    lead = b * b - t * t * bottom
    half = a * b - t * t * both
    root = math.sqrt(max(0.0, half * half - lead * (a * a - t * t * top)))
    return (half - root) / lead, (half + root) / lead


def holm(p_values: list[float], level: float = 1 - CONFIDENCE) -> list[bool]:
    """Which of a family of tests hold together at ``level`` (Holm 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [True, False, False]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    kept = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > level / (len(p_values) - rank):
            break
        kept[i] = True
    return kept
