"""Bets and confidence sequences that are looked at after every sample: how often they are wrong.

The default run simulates 200 sets a case, the slow one 2,000, and both allow for the chance of so
many sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from unlearnbench.errors import MetricError
from unlearnbench.metrics.sequences import confidence_sequence, fewest, log_wealth, shown_after

Array = NDArray[np.float64]
Rng = np.random.Generator
UNIT = (0.0, 1.0)
LEVEL, LONGEST = 0.05, 150


def drifting(rng: Rng) -> Array:
    """Rows that get easier down the file, drawn in a random order; the mean is 0.5."""
    rows = np.clip(np.linspace(0, 1, 10_000) + rng.normal(0, 0.02, 10_000), 0, 1)
    rows += 0.5 - rows.mean()
    found: Array = np.clip(rng.choice(rows, LONGEST), 0, 1)
    return found


def swinging(rng: Rng) -> Array:
    """Every sample has the mean 0.5 whatever came before, and a spread that follows the luck."""
    found = np.empty(LONGEST)
    for i in range(LONGEST):
        wide = 0.5 if found[:i].sum() > i / 2 else 0.05
        found[i] = 0.5 + wide * rng.choice([-1.0, 1.0])
    return found


# By name: a set of samples, the scale and the true mean.
CASES: dict[str, tuple[Callable[[Rng], NDArray[np.floating]], tuple[float, float], float]] = {
    "constant": (lambda rng: np.full(LONGEST, 0.3), UNIT, 0.3),
    "drifting": (drifting, UNIT, 0.5),
    "swinging": (swinging, UNIT, 0.5),
    "heavy ties": (
        lambda rng: rng.choice([0.0, 0.5, 1.0], LONGEST, p=[0.9, 0.08, 0.02]),
        UNIT,
        0.06,
    ),
    "rare": (lambda rng: (rng.random(LONGEST) < 0.02) * 1.0, UNIT, 0.02),
    "coin": (lambda rng: (rng.random(LONGEST) < 0.5) * 1.0, UNIT, 0.5),
    "differences": (lambda rng: rng.beta(2, 5, LONGEST) - rng.beta(2, 5, LONGEST), (-1.0, 1.0), 0),
    "one end": (lambda rng: np.zeros(LONGEST), UNIT, 0.0),
}


def most_wrong(sets: int, level: float) -> int:
    """What an error of ``level`` exceeds in one of 1,000 simulations."""
    return int(binom.ppf(0.999, sets, level))


def hold(name: str, sets: int) -> None:
    """How often a bet against the truth is ever won: on either side at most ``LEVEL``."""
    draw, scale, truth = CASES[name]
    rng, above, below = np.random.default_rng([7, len(name)]), 0, 0
    mirrored = -scale[1], -scale[0]
    for _ in range(sets):
        values = np.asarray(draw(rng), dtype=np.float64)
        above += shown_after(values, truth, scale, LEVEL) is not None
        below += shown_after(-values, -truth, mirrored, LEVEL) is not None
    assert max(above, below) <= most_wrong(sets, LEVEL), (above, below)


@pytest.mark.parametrize("name", CASES)
def test_looking_after_every_sample_costs_no_error(name: str) -> None:
    hold(name, 200)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_looking_after_every_sample_costs_no_error_in_2000_sets(name: str) -> None:
    hold(name, 2000)


def test_wealth_is_the_mean_of_the_products() -> None:
    """Against products in plain floating point, stake by stake."""
    values, limit, (low, high) = np.array([0.2, 0.9, 0.4, 0.7]), 0.35, (-0.5, 1.5)
    stakes = [0.999, *(2 ** -(k / 2) for k in range(1, 13))]
    money = [math.sqrt(stake) for stake in stakes]
    paths = [math.prod(1 + s * (x - limit) / (limit - low) for x in values) for s in stakes]
    whole = sum(m * p for m, p in zip(money, paths, strict=True)) / sum(money)
    assert log_wealth(values, limit, (low, high))[-1] == pytest.approx(math.log(whole), rel=1e-12)


@pytest.mark.parametrize("n", [1, 5, 60])
def test_a_sequence_holds_the_limits_that_no_bet_refutes(n: int) -> None:
    """Against a scan over limits, on both sides."""
    values = np.random.default_rng(n).beta(2, 3, n)
    low, high = confidence_sequence(values, UNIT, 0.1)
    limits = np.linspace(0.001, 0.999, 999)
    kept = [
        limit
        for limit in limits
        if shown_after(values, limit, UNIT, 0.05) is None
        and shown_after(-values, -limit, (-1.0, 0.0), 0.05) is None
    ]
    assert low <= values.mean() <= high
    assert (min(kept), max(kept)) == pytest.approx((max(low, 0.001), min(high, 0.999)), abs=0.002)


def test_it_narrows_and_never_widens() -> None:
    values = np.random.default_rng(0).beta(2, 5, 400)
    ends = [confidence_sequence(values[:n], UNIT, 0.05) for n in (5, 20, 80, 400)]
    lows, highs = zip(*ends, strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs, reverse=True)
    assert highs[-1] - lows[-1] < 0.12


@pytest.mark.parametrize(("limit", "scale"), [(0.05, (-1.0, 1.0)), (0.8, UNIT), (0.5, (0.0, 2.0))])
def test_no_set_shows_it_with_fewer(limit: float, scale: tuple[float, float]) -> None:
    """The best of all sets: every sample at the end of the scale."""
    least = fewest(limit, scale, 0.025)
    best = np.full(5 * least, scale[1])
    taken = shown_after(best, limit, scale, 0.025)
    assert taken is not None
    assert least <= taken <= 2 * least + 2
    assert fewest(scale[0], scale, 0.025) == 1


def test_a_limit_outside_the_scale_is_beaten_at_once_or_never() -> None:
    values = np.array([0.2, 0.4])
    assert shown_after(values, -0.1, UNIT, 0.05) == 1
    assert shown_after(np.ones(500), 1.0, UNIT, 0.05) is None
    assert shown_after(np.zeros(500), 0.0, UNIT, 0.05) is None


@pytest.mark.parametrize("bad", [[0.1, math.nan], [0.1, 1.2], [-0.2], []])
def test_what_is_no_score_is_an_error(bad: list[float]) -> None:
    with pytest.raises(MetricError):
        log_wealth(np.array(bad), 0.5, UNIT)
