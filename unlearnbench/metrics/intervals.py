"""Means, AUCs and ratios of them, with their intervals: one engine for every figure.

It is the Bayesian bootstrap (Rubin 1981: random weights on the samples, seeded) with one sample
more, which was not seen: for the upper end it is as high, for the lower end as low as a sample
could be. Where few samples stand out from the rest it stands at the end of the scale: that is
Gaffke's interval (2005), which for samples of two values is Clopper and Pearson's exact one.
Elsewhere it stands as far from the median as any sample that was seen. A ratio's interval holds
every r for which the interval of ``top - r bottom`` holds 0 (Fieller 1954). p is the smallest level
whose interval leaves 0 out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import MetricError

CONFIDENCE = 0.95
DRAWS = 4999
MOST_WEIGHTS = 10_000_000
# With fewer samples that stand out, by more than this share of the scale from the median, the one
# not seen stands at the end of the scale: there may be more like them, or some where none was seen.
FEW = 10
APART = 0.1
# A smaller share of the draws is not counted: a saddlepoint says how small it is.
RARE = 0.01

Array = NDArray[np.float64]
Bounds = tuple[float, float]
Terms = Mapping[object, float]


@dataclass(frozen=True)
class Estimate:
    """A value, and how far its samples say that it may be off."""

    value: float
    ci: Bounds | None = None
    """None where the samples do not bound it: a single one, or a denominator that may be 0."""
    stderr: float | None = None
    """None for a single sample, and where all are alike: they show no spread."""
    p: float | None = None
    """Of means that can lie on either side of 0: two-sided, against it."""

    def scaled(self, factor: float, offset: float = 0.0) -> Estimate:
        """The estimate of ``factor x value + offset``, factor above 0."""
        ci = self.ci and (factor * self.ci[0] + offset, factor * self.ci[1] + offset)
        stderr = None if self.stderr is None else factor * self.stderr
        p = None if offset else self.p
        return Estimate(factor * self.value + offset, ci, stderr, p)


def finite(values: Sequence[float] | Array) -> Array:
    """The values as an array; MetricError where there are none, or one is not finite."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise MetricError("no samples: an average over nothing is no measurement")
    if not np.isfinite(array).all():
        raise MetricError("a score is NaN or infinite; it cannot be averaged")
    return array


@dataclass(frozen=True)
class Draws:
    """Random weights that all figures of a comparison share."""

    weights: Array
    """Exponential; of each sample, then of the one not seen: shape (draws, n + 1)."""
    others: Array | None = None
    """The same for the second group of a two-sample statistic."""
    confidence: float = CONFIDENCE

    @property
    def tail(self) -> float:
        """The probability beyond each end of an interval."""
        return (1 - self.confidence) / 2


def draw(n: int, seed: int, others: int | None = None, confidence: float = CONFIDENCE) -> Draws:
    """Weights of ``n`` samples, and of a second group of ``others``; the same for a seed."""
    least = math.ceil(4 / (1 - confidence))  # enough to have some beyond each end
    count = max(199, least, min(DRAWS, MOST_WEIGHTS // max(n, others or 0)))
    second = None if others is None else _exponentials(others, seed + 1_000_003, count)
    return Draws(_exponentials(n, seed, count), second, confidence)


@lru_cache(maxsize=8)
def _exponentials(n: int, seed: int, count: int) -> Array:
    weights = np.random.default_rng([seed, n]).exponential(size=(count, n + 1))
    weights.flags.writeable = False
    return weights


@dataclass(frozen=True)
class Values:
    """One value a sample, shape (n,); or one for every pair of two groups, shape (m, n)."""

    values: Array
    scale: Bounds
    """What a model's own values cannot leave."""
    terms: dict[object, float] = field(default_factory=dict)
    """The models whose values are summed here, each with its factor."""

    def __post_init__(self) -> None:
        finite(self.values)
        if not self.terms:
            self.terms[object()] = 1.0

    @cached_property
    def mean(self) -> float:
        """The plain mean."""
        return float(self.values.mean())

    @property
    def n(self) -> int:
        """Samples; of pairs, those of the smaller group."""
        return int(min(self.values.shape))

    def minus(self, other: Values, factor: float = 1.0) -> Values:
        """``self - factor x other``, sample by sample."""
        if self.values.shape != other.values.shape or self.scale != other.scale:
            raise MetricError("paired scores need the same samples on both sides")
        terms = _less(self.terms, other.terms, factor)
        return Values(self.values - factor * other.values, self.scale, terms)

    @property
    def bounds(self) -> Bounds:
        """What no value can leave."""
        return _ends(self.terms, self.scale)

    @cached_property
    def parts(self) -> list[Array]:
        """Each sample's own value; of pairs, each text's mean over the other group (DeLong, DeLong
        and Clarke-Pearson 1988).
        """
        values = self.values
        return [values] if values.ndim == 1 else [values.mean(axis=1), values.mean(axis=0)]

    @cached_property
    def is_sparse(self) -> bool:
        """Whether, in some group, few samples stand out from the median."""
        # A little more: shares of texts lie on the limit itself, or by their last digit beside it.
        far = APART * (self.scale[1] - self.scale[0]) * (1 + 1e-9)
        return any((np.abs(part - np.median(part)) > far).sum() < FEW for part in self.parts)

    @property
    def stderr(self) -> float | None:
        """Of the mean; None where it is 0 or not defined."""
        if self.n < 2:
            return None
        error = math.sqrt(sum(part.var(ddof=1) / len(part) for part in self.parts))
        return error if error > 1e-12 * max(1.0, abs(self.mean)) else None


def _less(terms: Terms, other: Terms, factor: float) -> dict[object, float]:
    found = dict(terms)
    for term, times in other.items():
        found[term] = found.get(term, 0.0) - factor * times
    return found


def _ends(terms: Terms, scale: Bounds) -> Bounds:
    ends = [sorted(factor * end for end in scale) for factor in terms.values()]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def pooled(models: Sequence[Values]) -> Values:
    """The mean of several models' values, sample by sample."""
    total = models[0]
    for other in models[1:]:
        total = total.minus(other, -1.0)
    share = 1 / len(models)
    terms = {term: share * factor for term, factor in total.terms.items()}
    return Values(share * total.values, total.scale, terms) if len(models) > 1 else total


def with_trainings(
    found: Estimate, singles: Sequence[float], confidence: float, bounds: Bounds | None = None
) -> Estimate:
    """A mean over several trainings, with their spread in its interval too. ``singles``: each
    training's own value; ``bounds``: what the mean cannot leave.

    The trainings' part is Student's (a bootstrap of three seeds would cover 75%); the two
    distances from the value add as squares (MOVER, Zou and Donner 2008).
    """
    from scipy.optimize import brentq
    from scipy.stats import norm, t

    count = len(singles)
    error = float(np.std(singles, ddof=1)) / math.sqrt(count) if count > 1 else 0.0
    if found.ci is None or error <= 1e-12:
        return found
    value, (low, high) = found.value, found.ci
    half = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    low, high = value - math.hypot(value - low, half), value + math.hypot(high - value, half)
    if bounds is not None:
        low, high = max(low, bounds[0]), min(high, bounds[1])
    p = found.p
    if p is not None and p < 1:
        own = float(norm.isf(p / 2))  # samples alone leave 0 out at this quantile

        def reach(power: float) -> float:
            both = norm.isf(10**power) / own * value, t.isf(10**power, count - 1) * error
            return math.hypot(*both) - abs(value)

        p = 2 * 10 ** (float(brentq(reach, -300, math.log10(0.5))) if reach(-300) > 0 else -300)
    stderr = math.hypot(found.stderr or 0.0, error)
    return Estimate(value, (low, high), stderr, p)


def mean(values: Values, draws: Draws) -> Estimate:
    """The mean with its interval and p-value; pairs need weights of both groups."""
    if values.n < 2:
        return Estimate(values.mean)
    spread = _Spread(values, None, draws, values.is_sparse)
    ends = (spread.end(0.0, 0), spread.end(0.0, 1))
    low, high = values.bounds
    return Estimate(values.mean, ends, values.stderr, spread.p() if low < 0 < high else None)


def drawn_means(values: Values, draws: Draws, side: int) -> Array:
    """The mean of samples in each draw, for the lower (0) or the upper end (1)."""
    return _Spread(values, None, draws, values.is_sparse)._drawn(0.0, side)


def ratio(top: Values, bottom: Values, draws: Draws) -> Estimate:
    """``mean(top) / mean(bottom)`` over the same samples, with its interval; MetricError where the
    denominator is 0.
    """
    if bottom.mean == 0:
        raise MetricError("a ratio with a denominator of 0 is no measurement")
    point = top.mean / bottom.mean + 0.0  # never -0
    if top.n < 2:
        return Estimate(point)
    rest = top.minus(bottom, point)
    stderr = None if rest.stderr is None else rest.stderr / abs(bottom.mean)
    below = _Spread(bottom, None, draws, bottom.is_sparse)
    if below.end(0.0, 0) <= 0 <= below.end(0.0, 1):
        return Estimate(point, None, stderr)
    sparse = top.is_sparse or bottom.is_sparse or rest.is_sparse
    spread = _Spread(top, bottom, draws, sparse)
    low, high = (spread.crossing(point, direction) for direction in (-1, 1))
    ci = None if low is None or high is None else (low, high)
    return Estimate(point, ci, stderr)


@dataclass(frozen=True)
class _Group:
    """Samples (or kinds of pairs) with their weights; the last weight is the unseen one's."""

    top: Array
    bottom: Array
    mass: Array
    """How many samples each stands for."""
    weights: Array

    @cached_property
    def sums(self) -> tuple[Array, Array, Array]:
        """Of each draw: of the top, of the bottom, and of the weights."""
        seen = self.weights[:, :-1]
        return seen @ self.top, seen @ self.bottom, self.weights.sum(axis=1)


class _Spread:
    """What the draws say of ``mean(top - r bottom)``; without a bottom, of ``mean(top)``."""

    def __init__(self, top: Values, bottom: Values | None, draws: Draws, sparse: bool) -> None:
        self._top, self._sparse, self._tail = top, sparse, draws.tail
        self._bottom = top.minus(top) if bottom is None else bottom
        self._groups = list(self._weighted(draws))

    def _weighted(self, draws: Draws) -> Iterator[_Group]:
        """A group of samples, or two of texts. A few odd pairs are one group, of as many samples as
        the smaller group has texts: so many pairs share no text, and are independent.
        """
        top, bottom = self._top, self._bottom
        if top.values.ndim == 1:
            yield _Group(top.values, bottom.values, np.ones(top.n), draws.weights)
        elif draws.others is None:
            raise MetricError("pairs need weights of both groups")
        elif self._sparse:
            pairs = top.values.round(12) + 1j * bottom.values.round(12)  # sorts faster than rows
            kinds, counts = np.unique(pairs, return_counts=True)
            mass = top.n * counts / counts.sum()
            rng = np.random.default_rng([len(mass), *top.values.shape])
            size = len(draws.weights), len(mass) + 1
            yield _Group(kinds.real, kinds.imag, mass, rng.gamma([*mass, 1.0], size=size))
        else:
            for n, weights in enumerate((draws.weights, draws.others)):
                yield _Group(top.parts[n], bottom.parts[n], np.ones(len(top.parts[n])), weights)

    def _unseen(self, group: _Group, r: float, side: int) -> float:
        """The value of the sample that was not seen, for the lower (0) or the upper end (1)."""
        last = _ends(_less(self._top.terms, self._bottom.terms, r), self._top.scale)[side]
        if self._sparse:
            return last
        seen = group.top - r * group.bottom
        middle = float(np.median(seen))
        most = float(np.abs(seen - middle).max())
        return min(last, middle + most) if side else max(last, middle - most)

    def _drawn(self, r: float, side: int) -> Array:
        """The mean in each draw."""
        extra = len(self._groups) - 1  # of two groups' means each is the whole mean
        drawn = np.full(
            len(self._groups[0].weights), -extra * (self._top.mean - r * self._bottom.mean)
        )
        for group in self._groups:
            top, bottom, total = group.sums
            unseen = group.weights[:, -1] * self._unseen(group, r, side)
            drawn += (top - r * bottom + unseen) / total
        return drawn

    def end(self, r: float, side: int) -> float:
        """An end of the interval: exact where samples and the unseen one have two values."""
        if len(self._groups) == 1:
            group = self._groups[0]
            seen, unseen = group.top - r * group.bottom, self._unseen(group, r, side)
            other = seen[seen != unseen]
            if len(other) == 0:
                return unseen
            if (other == other[0]).all():
                from scipy.special import betaincinv

                share = group.mass[seen == unseen].sum(), group.mass[seen != unseen].sum()
                most = float(betaincinv(share[0] + 1, share[1], 1 - self._tail))
                return float(other[0] + (unseen - other[0]) * most)
        drawn = self._drawn(r, side)
        k = max(1, int(self._tail * (len(drawn) + 1)))
        at = len(drawn) - k if side else k - 1
        return float(np.partition(drawn, at)[at])

    def crossing(self, point: float, direction: int) -> float | None:
        """The r beyond ``point`` at which 0 leaves the interval of ``mean(top - r bottom)``; None
        where it never does.
        """
        from scipy.optimize import brentq

        side = int((self._bottom.mean > 0) == (direction > 0))

        def inside(r: float) -> float:
            return self.end(r, side) * (1 if side else -1)

        near, step = point, 0.1 * max(1.0, abs(point))
        if inside(near) <= 0:
            return point
        for _ in range(40):
            far = near + direction * step
            if inside(far) < 0:
                return float(brentq(inside, near, far, xtol=1e-9, rtol=1e-9))
            near, step = far, 2 * step
        return None

    def p(self) -> float:
        """Twice the share of draws beyond 0, at the end where it is smaller."""
        shares = []
        for side, sign in ((0, 1), (1, -1)):
            share = float((sign * self._drawn(0.0, side) <= 0).mean())
            shares.append(share if share >= RARE else min(RARE, self._rare(side, sign)))
        return min(1.0, 2 * min(shares))

    def _rare(self, side: int, sign: int) -> float:
        """The probability that a draw is at or beyond 0, by Lugannani and Rice (1980). The unseen
        sample stands beyond 0 too, as far as any that was seen stands on either side.
        """
        from scipy.optimize import brentq
        from scipy.special import ndtr

        offset = self._top.mean * (len(self._groups) - 1) / len(self._groups)
        last, parts = sign * (self._top.bounds[side] - offset), []
        for group in self._groups:
            seen = sign * (group.top - offset)
            unseen = sign * (self._unseen(group, 0.0, side) - offset)
            unseen = max(last, min(unseen, -float(np.abs(seen).max())))
            parts.append(np.append(seen, unseen) / (len(seen) + 1))
        x, mass = np.concatenate(parts), np.concatenate([[*g.mass, 1.0] for g in self._groups])

        def slope(s: float) -> float:
            return float((mass * x / (1 - s * x)).sum())

        if slope(0.0) <= 0:  # the unseen one outweighs the others: 0 is nothing rare
            return 1.0
        s = brentq(slope, (1 - 1e-12) / x.min(), 0.0)
        w = -math.sqrt(2 * float((mass * np.log1p(-s * x)).sum()))
        u = s * math.sqrt(float((mass * (x / (1 - s * x)) ** 2).sum()))
        density = math.exp(-w * w / 2) / math.sqrt(2 * math.pi)
        return float(max(1e-300, ndtr(w) + density * (1 / w - 1 / u)))


def average(found: Sequence[Estimate]) -> Estimate:
    """The mean of figures of samples apart from each other: the distances to their intervals' ends
    add as squares (MOVER, Zou and Donner 2008).
    """
    value = float(finite([each.value for each in found]).mean())
    bounded = [(each.value - each.ci[0], each.ci[1] - each.value) for each in found if each.ci]
    if len(bounded) < len(found):
        return Estimate(value)
    low, high = (math.hypot(*side) / len(found) for side in zip(*bounded, strict=True))
    return Estimate(value, (value - low, value + high))


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
