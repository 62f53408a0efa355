"""Means of bounded samples that are looked at after every one of them: bets and confidence
sequences, whose error holds however often one looks and whenever one stops.

Who bets that a mean lies above ``limit`` and stakes on every sample a share of what he has, wins
nothing in expectation where it does not, so that his wealth ever reaches ``1 / level`` with a
probability of at most ``level`` (Ville 1939). The stakes are fixed ones side by side, each with its
part of the money: "diversified Kelly betting" of Waudby-Smith and Ramdas, Estimating means of
bounded random variables by betting, 2021, arXiv 2010.09686. Nothing is tuned on the samples, the
order in which they came changes only where the wealth has its peak, and the limits that are not
refuted make an interval: the confidence sequence.
"""

from __future__ import annotations

import math

import numpy as np

from unlearnbench.errors import MetricError
from unlearnbench.metrics.intervals import Array, Bounds, finite

# Shares of the largest stake, half an octave apart, and of the money that is staked so. The largest
# is not whole: one sample at the end of the scale would take all.
_STAKES = np.array([0.999, *(2.0 ** -(k / 2) for k in range(1, 13))])
_MONEY = np.sqrt(_STAKES) / np.sqrt(_STAKES).sum()
_STEPS = 40


def log_wealth(values: Array, limit: float, scale: Bounds) -> Array:
    """The logarithm of what a bet on "the mean is above ``limit``" has made of 1, after each of
    ``values``, shape (n,), in the order in which they were drawn.

    ``scale``: what no value can leave. A limit below it is beaten at once (infinity), one at its
    upper end or beyond never (minus infinity). Raises MetricError where a value is not finite or
    leaves the scale.
    """
    array, (low, high) = finite(values), scale
    room = 1e-9 * max(1.0, high - low)
    if array.min() < low - room or array.max() > high + room:
        raise MetricError(f"a score leaves its scale, {low:g} to {high:g}")
    if limit < low or limit >= high:
        return np.full(len(array), math.inf if limit < low else -math.inf)
    # At the lower end itself nothing can be lost; a stake without bound would follow.
    gain = (np.clip(array, low, high) - limit) / max(limit - low, 1e-3 * (high - low))
    paths = np.log1p(_STAKES * gain[:, None]).cumsum(axis=0) + np.log(_MONEY)
    peak = paths.max(axis=1, keepdims=True)
    wealth: Array = np.log(np.exp(paths - peak).sum(axis=1)) + peak[:, 0]
    return wealth


def shown_after(values: Array, limit: float, scale: Bounds, level: float) -> int | None:
    """After how many of ``values`` it was shown that their mean is above ``limit``; None: it is
    not. ``level``: the largest probability of ever showing it where it is not so.
    """
    reached = np.flatnonzero(log_wealth(values, limit, scale) >= -math.log(level))
    return int(reached[0]) + 1 if len(reached) else None


def confidence_sequence(values: Array, scale: Bounds, level: float) -> Bounds:
    """The means that no look at ``values`` so far has refuted. Each end is wrong at any time of all
    with a probability of at most ``level / 2``.

    Example:
        >>> low, high = confidence_sequence(np.full(200, 0.5), (0.0, 1.0), 0.05)
        >>> 0.45 < low < 0.5 < high < 0.55
        True
    """
    low, high = scale
    mirrored = -finite(values), (-high, -low)
    return _lower_end(finite(values), scale, level / 2), -_lower_end(*mirrored, level / 2)


def _lower_end(values: Array, scale: Bounds, level: float) -> float:
    """The largest limit below which the mean was shown not to lie: wealth falls with the limit."""
    beaten, open_ = scale
    for _ in range(_STEPS):
        middle = (beaten + open_) / 2
        if shown_after(values, middle, scale, level) is None:
            open_ = middle
        else:
            beaten = middle
    return beaten


def fewest(limit: float, scale: Bounds, level: float) -> int:
    """The fewest samples that can show a mean above ``limit``, with every one of them at the upper
    end of the scale: no order of samples, and no cleverer bet, does it with less.
    """
    low, high = scale
    if limit <= low:
        return 1
    return math.ceil(-math.log(level) / math.log((high - low) / (limit - low)))
