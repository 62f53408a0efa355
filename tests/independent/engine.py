"""Intervals, by integration."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import brentq
from scipy.stats import t as student

from tests.independent.files import Array, Cell

FEW = 10  # samples that stand out, below which the unseen one stands at the end of the scale
TAIL = 0.025
DRAWS = 20_000
# The chance that the 2.5% point of 4,999 draws leaves out has a standard deviation of 0.0022.
CHANCE = 4.5 * math.sqrt(TAIL * (1 - TAIL) / 4999)
_LOG_STEP = 0.05
_FREQUENCIES = np.exp(np.arange(-36, 40, _LOG_STEP))


def chance_below_zero(values: Array, counts: Array) -> float:
    """P(sum of values x Gamma(counts) <= 0)."""
    largest = np.abs(values).max()
    if largest == 0:
        return 1.0
    u = _FREQUENCIES[:, None] * (values / largest)
    turn = (counts * np.arctan(u)).sum(1)
    fall = np.exp(-0.5 * (counts * np.log1p(u * u)).sum(1))
    return float(0.5 - (np.sin(turn) * fall).sum() * _LOG_STEP / np.pi)


def _distinct(values: Array, total: float) -> tuple[Array, Array]:
    """Distinct values, and how often each stands there, ``total`` together."""
    found, counts = np.unique(np.round(values.ravel(), 9), return_counts=True)
    return found, counts * (total / counts.sum())


def _stand_out(values: Array) -> int:
    """How many lie more than a tenth of the scale, 10 points, from the median."""
    return int((np.abs(values - np.median(values)) > 10 * (1 + 1e-9)).sum())


def is_sparse(points: Array) -> bool:
    groups = [points] if points.ndim == 1 else [points.mean(1), points.mean(0)]
    return min(map(_stand_out, groups)) < FEW


def unseen(values: Array, low: float, high: float) -> tuple[float, float]:
    middle = float(np.median(values))
    far = float(np.abs(values - middle).max())
    return max(low, middle - far), min(high, middle + far)


def _weights(n: int, seed: int, cache: dict[tuple[int, int], Array] = {}) -> Array:  # noqa: B006
    """Of ``n`` samples and the unseen one, the last; each row sums to 1."""
    if (n, seed) not in cache:
        drawn = np.random.default_rng(seed).exponential(size=(DRAWS, n + 1))
        cache[n, seed] = drawn / drawn.sum(1, keepdims=True)
    return cache[n, seed]


Line = Callable[[float], tuple[Array, float, float]]


@dataclass
class Interval:
    """Of the r at which the mean of ``line(r)`` is 0, which falls as r rises. ``line`` gives the
    values, and how low and how high a value could be.
    """

    line: Line
    point: float
    sparse: bool

    def _chance(self, r: float, unseen_high: bool) -> float:
        """P(weighted mean <= 0)."""
        points, *scale = self.line(r)
        if points.ndim == 2 and not self.sparse:
            return self._two_groups(points, scale[0], scale[1], unseen_high)
        values, counts = _distinct(points, min(points.shape))
        low, high = scale if self.sparse else unseen(points, *scale)
        values = np.append(values, high if unseen_high else low)
        return chance_below_zero(values, np.append(counts, 1.0))

    def _two_groups(self, pairs: Array, low: float, high: float, unseen_high: bool) -> float:
        groups = []
        for axis in (1, 0):
            means = pairs.mean(axis)
            groups.append(np.append(means, unseen(means, low, high)[unseen_high]))
        total: Array = sum(
            _weights(len(group) - 1, 71 + i) @ group for i, group in enumerate(groups)
        )
        return float((total <= pairs.mean()).mean())

    def _rare(self, unseen_high: bool) -> float:
        """The chance of 0 beyond, however rare: with the unseen sample at least as far there as any
        that was seen on either side; of two groups summed over where one's mean lies.
        """
        points, low, high = self.line(0.0)
        sign, end = (-1, high) if unseen_high else (1, low)
        two = points.ndim == 2 and not self.sparse
        offset = points.mean() / 2 if two else 0.0

        def with_unseen(seen: Array) -> Array:
            own = (end if self.sparse else unseen(seen, low, high)[unseen_high]) - offset
            far = -float(np.abs(seen - offset).max())
            last = max(sign * (end - offset), min(sign * own, far))
            return np.append(sign * (seen - offset), last)

        if not two:
            values, counts = _distinct(points, min(points.shape))
            return chance_below_zero(with_unseen(values), np.append(counts, 1.0))
        first, second = with_unseen(points.mean(1)), with_unseen(points.mean(0))
        at = np.linspace(second.min(), second.max(), 300)
        steps = np.diff([chance_below_zero(second - t, np.ones(len(second))) for t in at])
        chance = 0.0
        for step, middle in zip(steps, (at[1:] + at[:-1]) / 2, strict=True):
            chance += float(step) * chance_below_zero(first + middle, np.ones(len(first)))
        return chance

    def left_out_below(self, r: float) -> float:
        """The chance that a lower end at ``r`` leaves out: 2.5% at the end itself."""
        return self._chance(r, unseen_high=False)

    def left_out_above(self, r: float) -> float:
        return 1 - self._chance(r, unseen_high=True)

    def above(self, r: float) -> bool:
        """Does the whole interval lie above r?"""
        return self.left_out_below(r) < TAIL

    def below(self, r: float) -> bool:
        return self.left_out_above(r) < TAIL

    @cached_property
    def p(self) -> float:
        shares = []
        for high, share in enumerate((self.left_out_below(0.0), self.left_out_above(0.0))):
            shares.append(share if share >= 0.01 else min(0.01, self._rare(bool(high))))
        return min(1.0, 2 * min(shares))

    @cached_property
    def ends(self) -> tuple[float, float]:
        return self.ends_at(TAIL)

    def ends_at(self, tail: float) -> tuple[float, float]:
        low = -_solve(lambda s: tail - self.left_out_below(-s), -self.point)
        return low, _solve(lambda r: tail - self.left_out_above(r), self.point)


@dataclass
class Wider(Interval):
    """At least as wide as ``least`` is on either side."""

    least: Interval

    def _chance(self, r: float, unseen_high: bool) -> float:
        both = [super()._chance(r, unseen_high), self.least._chance(r, unseen_high)]
        return min(both) if unseen_high else max(both)


def _solve(rising: Callable[[float], float], start: float) -> float:
    """Where a function that rises through 0 beyond ``start`` does so, or jumps over it."""
    step = 1e-3 * max(1.0, abs(start))
    low, high = start, start + step
    while rising(high) < 0:
        step *= 2
        low, high = high, high + step
        if step > 1e9:
            return math.inf
    if rising(low) >= 0:
        return low
    return float(brentq(rising, low, high, xtol=1e-11, rtol=1e-13))


@dataclass(frozen=True)
class Sum:
    """A sum of cells' means with factors, in points."""

    parts: tuple[tuple[Array, float], ...]

    def __sub__(self, other: Sum) -> Sum:
        return Sum(self.parts + tuple((points, -by) for points, by in other.parts))

    @property
    def mean(self) -> float:
        return float(sum(by * points.mean() for points, by in self.parts))

    @cached_property
    def points(self) -> Array:
        return sum(by * points for points, by in self.parts)  # type: ignore[return-value]

    def merged(self, other: Sum, r: float) -> tuple[Array, float, float]:
        """Self - r x other, a cell that stands on both sides once."""
        factors: dict[int, float] = {}
        arrays = {id(points): points for points, _ in self.parts + other.parts}
        for points, by in self.parts:
            factors[id(points)] = factors.get(id(points), 0.0) + by
        for points, by in other.parts:
            factors[id(points)] = factors.get(id(points), 0.0) - r * by
        values = sum(by * arrays[key] for key, by in factors.items())
        low = 100 * sum(min(by, 0.0) for by in factors.values())
        return values, low, 100 * sum(max(by, 0.0) for by in factors.values())  # type: ignore[return-value]


def of(cell: Cell) -> Sum:
    return Sum(((cell.points, 1.0),))


def mean_interval(top: Sum) -> Interval:
    nothing = Sum(())
    points, low, high = top.merged(nothing, 0.0)
    return Interval(lambda r: (points - r, low - r, high - r), top.mean, is_sparse(points))


def ratio_interval(top: Sum, bottom: Sum) -> Interval | None:
    """None where the denominator may be 0."""
    if bottom.mean < 0:
        nothing = Sum(())
        top, bottom = nothing - top, nothing - bottom
    if bottom.mean == 0 or not mean_interval(bottom).above(0.0):
        return None
    point = top.mean / bottom.mean
    sides = (top.points, bottom.points, top.merged(bottom, point)[0])
    return Interval(lambda r: top.merged(bottom, r), point, any(map(is_sparse, sides)))


def leak_interval(own: Sum, zero: Sum) -> Interval | None:
    """Of AUC / zero's AUC: where few texts decide, at least as wide as the AUC's own interval."""
    found = ratio_interval(own, zero)
    points, low, high = own.merged(Sum(()), 0.0)
    if found is None or not is_sparse(points):
        return found

    def line(r: float) -> tuple[Array, float, float]:
        return points - r * zero.mean, low - r * zero.mean, high - r * zero.mean

    return Wider(found.line, found.point, found.sparse, Interval(line, found.point, True))


@dataclass
class Figure:
    """A figure's value, and its interval if it has one: ``scale`` x r + ``shift`` of what
    ``interval`` bounds; with several trainings, their own values beside it.
    """

    value: float
    interval: Interval | None
    own: tuple[float, ...] = ()
    scale: float = 1.0
    shift: float = 0.0
    plain: bool = False  # a mean, no ratio

    def _student(self, tail: float = TAIL) -> float:
        """Half of Student's interval of the trainings' values."""
        k = len(self.own)
        spread = float(np.std(self.own, ddof=1)) if k > 1 else 0.0
        return float(student.ppf(1 - tail, k - 1)) * spread / math.sqrt(k) if spread else 0.0

    def ends_at(self, tail: float = TAIL) -> tuple[float, float] | None:
        if self.interval is None:
            return None
        bounds = self.interval.ends if tail == TAIL else self.interval.ends_at(tail)
        if not all(map(math.isfinite, bounds)):
            return None
        low, high = (self.scale * r + self.shift for r in bounds)
        more = self._student(tail)
        return (
            self.value - math.hypot(self.value - low, more),
            self.value + math.hypot(high - self.value, more),
        )

    @cached_property
    def ends(self) -> tuple[float, float] | None:
        return self.ends_at()

    @cached_property
    def p(self) -> float:
        """The smallest level whose interval leaves 0 out."""
        assert self.interval is not None
        if not self._student():
            return self.interval.p

        def holds(log_p: float) -> float:
            ends = self.ends_at(math.exp(log_p) / 2)
            return -1.0 if ends is not None and (ends[0] > 0 or ends[1] < 0) else 1.0

        low, high = math.log(1e-9), 0.0
        if holds(high) > 0:
            return 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if holds(middle) > 0 else (low, middle)
        return math.exp(high)

    def differs(self, ends: Sequence[float] | None, digits: float) -> str:
        """What differs in a stated interval. ``digits``: how far its numbers are rounded."""
        if ends is not None and self.ends is not None and self._student():
            low, high = self.ends  # of trainings: PrivLeak cannot be lower, nor a score higher
            ends = (
                low if low < ends[0] == -100.0 else ends[0],
                high if high > ends[1] == 100.0 else ends[1],
            )
        if self.interval is None or ends is None:
            ours = self.ends
            return "" if ours is ends is None else f"interval {ends}, ours {ours}"
        for side, end in enumerate(ends):
            # Without the trainings' part: of the samples alone.
            alone = math.sqrt(max((end - self.value) ** 2 - self._student() ** 2, 0.0))
            r = (self.value + (alone if side else -alone) - self.shift) / self.scale
            out = self.interval.left_out_above(r) if side else self.interval.left_out_below(r)
            if abs(out - TAIL) <= CHANCE and not self._exact(side):
                continue
            ours = self.ends
            if ours is None:
                return f"interval {list(ends)}, ours none"
            share = 0.04 if self._student() else 1e-6
            near = share * (ours[1] - ours[0]) + digits * max(1.0, abs(ours[side]))
            if abs(end - ours[side]) > near:
                return f"interval {list(ends)}, ours {ours}: the end {end} leaves {out:.3%} out"
        return ""

    def _exact(self, side: int) -> bool:
        """At most two values of samples, the unseen one's with them: nothing is drawn."""
        assert self.interval is not None
        points, *scale = self.interval.line(self.interval.point)
        ends = scale if self.interval.sparse else unseen(points, *scale)
        values = np.unique(np.round(np.append(points, ends[side]), 9))
        return self.plain and points.ndim == 1 and len(values) <= 2


def summed(sums: Sequence[Sum]) -> Figure:
    """Of sums of cells, one a training: their mean."""
    whole = mean_of(sums)
    return Figure(whole.mean, mean_interval(whole), tuple(one.mean for one in sums), plain=True)


def mean_of(sums: Sequence[Sum]) -> Sum:
    return Sum(tuple((x, by / len(sums)) for one in sums for x, by in one.parts))


def shared(
    tops: Sequence[Sum], bottoms: Sequence[Sum], by: float = 1.0, plus: float = 0.0
) -> Figure:
    """A ratio of means over the trainings."""
    top, bottom = mean_of(tops), mean_of(bottoms)
    own = tuple(by * a.mean / b.mean + plus for a, b in zip(tops, bottoms, strict=True) if b.mean)
    return Figure(by * top.mean / bottom.mean + plus, ratio_interval(top, bottom), own, by, plus)
