"""leak@k, the best of k, and the bounds, against closed forms, enumeration and simulation."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import beta, binom

from unlearnbench.errors import MetricError
from unlearnbench.metrics.leak import (
    best_of_k,
    chance_bound,
    dkw_width,
    leak_at_k,
    mean_bound,
    summarize_leak,
)

SCORES = [0.1, 0.9, 0.4, 0.4, 0.0, 1.0, 0.7]


@pytest.mark.parametrize("n", [1, 5, 200])
def test_leak_at_k_closed_forms(n: int) -> None:
    for leaks in (0, 1, n // 2, n):
        assert leak_at_k(n, leaks, 1) == pytest.approx(leaks / n)  # k = 1: the share
        assert leak_at_k(n, leaks, n) == (leaks > 0)  # n = k: one is enough
    for k in (1, n):
        assert leak_at_k(n, n, k) == 1
        assert leak_at_k(n, 0, k) == 0


def test_leak_at_k_is_the_share_of_all_choices() -> None:
    leaks = [1, 0, 0, 1, 0, 0]
    for k in range(1, 7):
        found = [any(choice) for choice in combinations(leaks, k)]
        assert leak_at_k(6, 2, k) == pytest.approx(np.mean(found))


def test_the_best_of_k_is_the_mean_over_all_choices() -> None:
    for k in range(1, len(SCORES) + 1):
        found = [max(choice) for choice in combinations(SCORES, k)]
        assert best_of_k(SCORES, k) == pytest.approx(np.mean(found))
    assert best_of_k(SCORES, len(SCORES)) == max(SCORES)
    binary = [1.0, 0.0, 0.0, 1.0, 0.0]
    assert best_of_k(binary, 3) == pytest.approx(leak_at_k(5, 2, 3))


def test_the_bound_on_a_chance() -> None:
    for n, leaks in ((10, 0), (10, 3), (128, 127)):
        bound = chance_bound(n, leaks, 0.01)
        assert bound == pytest.approx(beta.ppf(0.99, leaks + 1, n - leaks))
        assert binom.cdf(leaks, n, bound) == pytest.approx(0.01)  # what it is defined by
    assert chance_bound(7, 7) == 1
    assert chance_bound(128, 0, 0.01) == pytest.approx(1 - 0.01 ** (1 / 128))


def test_the_width_of_the_band() -> None:
    assert dkw_width(128, 0.01, 2) == pytest.approx(math.sqrt(math.log(200) / 256))
    assert dkw_width(128, 0.01) == pytest.approx(math.sqrt(math.log(100) / 256))


@pytest.mark.parametrize("scores", [SCORES * 20, [0.0] * 50, [1.0] * 50, [0.3]])
def test_the_bound_on_a_mean_is_the_integral(scores: list[float]) -> None:
    middles = (np.arange(200_000) + 0.5) / 200_000
    steps = np.searchsorted(np.sort(scores), middles, side="right") / len(scores)
    above = np.maximum(steps - math.sqrt(math.log(1 / 0.01) / (2 * len(scores))), 0)
    assert mean_bound(scores, 0.01) == pytest.approx(1 - above.mean(), abs=1e-5)


def test_both_bounds_hold_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    draws = rng.beta(0.5, 2, size=(400, 40))
    held = np.mean([mean_bound(list(row)) >= 0.2 for row in draws])
    assert held >= 0.95
    counts = rng.binomial(40, 0.1, size=2000)
    share = np.mean([chance_bound(40, int(c)) >= 0.1 for c in counts])
    assert share + 3 * math.sqrt(0.05 * 0.95 / 2000) >= 0.95


def test_the_summary_is_of_all_questions() -> None:
    found = summarize_leak([[0.5, 0.0, 0.2], [0.4, 0.1, 0.49]], 2)
    assert found["leak"] == pytest.approx({"1": 100 / 6, "2": 100 / 3, "3": 50})
    assert found["best"] == pytest.approx(
        {k: 50 * (best_of_k([0.5, 0.0, 0.2], int(k)) + best_of_k([0.4, 0.1, 0.49], int(k)))
         for k in ("1", "2", "3")}
    )  # fmt: skip
    assert found["leak_bound"] == pytest.approx(50 * (chance_bound(3, 1) + chance_bound(3, 0)))
    assert (found["draws"], found["threshold"]) == (3, 0.5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: leak_at_k(3, 1, 0),
        lambda: leak_at_k(3, 1, 4),
        lambda: leak_at_k(3, 4, 1),
        lambda: leak_at_k(3, -1, 1),
        lambda: best_of_k([], 1),
        lambda: best_of_k([0.1, math.nan], 1),
        lambda: chance_bound(0, 0),
        lambda: mean_bound([1.5]),
        lambda: mean_bound([math.nan]),
        lambda: summarize_leak([[0.1], [0.1, 0.2]], 2),
        lambda: summarize_leak([[0.1]], 2),
    ],
)
def test_what_is_no_measurement_is_refused(call: object) -> None:
    with pytest.raises(MetricError):
        call()  # type: ignore[operator]
