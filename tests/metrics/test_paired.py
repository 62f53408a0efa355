"""The intervals against simulation, against Fieller's closed form and against hand counts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from unlearnbench.errors import MetricError
from unlearnbench.metrics.paired import Column, Pairs, draw, holm, mean, ratio
from unlearnbench.metrics.stats import auc
from unlearnbench.recovery.statistics import leak_scores

Array = NDArray[np.float64]
SETS = 1000
POINTS = (-100.0, 100.0)
Models = tuple[Array, Array, Array]


def verbatim_like(rng: np.random.Generator, n: int) -> Models:
    """Scores of an unlearned model, its quantized copy and the target: smooth, one text's alike."""
    text = 0.7 * rng.normal(size=n)
    found = [
        100 / (1 + np.exp(-1.5 * (text + level + 0.7 * rng.normal(size=n))))
        for level in (-1.5, 0.2, 0.8)
    ]
    return found[0], found[1], found[2]


def answers_like(rng: np.random.Generator, n: int) -> Models:
    """The same heaped at 0 and at 100, as short answers are."""
    heaped = [np.where(x < 45, 0.0, np.where(x > 75, 100.0, x)) for x in verbatim_like(rng, n)]
    return heaped[0], heaped[1], heaped[2]


def figures(models: Models) -> tuple[float, float, float]:
    full, quantized, target = (float(x.mean()) for x in models)
    return quantized - full, (quantized - full) / (target - full), quantized / target


@pytest.mark.slow
@pytest.mark.parametrize("n", [32, 100])
@pytest.mark.parametrize("make", [verbatim_like, answers_like])
def test_intervals_cover_93_to_97_percent(
    make: Callable[[np.random.Generator, int], Models], n: int
) -> None:
    rng = np.random.default_rng(n)
    truth = figures(make(np.random.default_rng(99), 2_000_000))
    draws = draw(n, 0)
    hits, above = np.zeros(3), np.zeros(3)
    for _ in range(SETS):
        full, quantized, target = make(rng, n)
        moved, gap = Column(quantized - full, POINTS), Column(target - full, POINTS)
        kept = Column(quantized, (0, 100)), Column(target, (0, 100))
        found = (mean(moved, draws), ratio(moved, gap, draws), ratio(*kept, draws))
        for k, (part, true) in enumerate(zip(found, truth, strict=True)):
            assert part.ci is not None
            hits[k] += part.ci[0] <= true <= part.ci[1]
            above[k] += part.ci[0] > true
    assert (hits >= 0.93 * SETS).all(), hits
    assert (hits <= 0.97 * SETS).all(), hits
    assert (above <= 0.045 * SETS).all(), above  # both tails, not one that pays for the other


def test_intervals_of_pairs_cover() -> None:
    rng, n, sets = np.random.default_rng(3), 40, 300
    spread = math.sqrt(2 * 1.25)
    areas = [scipy_stats.norm.cdf(-gap / spread) for gap in (0.0, 1.0, 2.0)]
    truth = (areas[1] - areas[0], (areas[1] - areas[0]) / (areas[2] - areas[0]))
    draws, hits = draw(n, 0, n), np.zeros(2)
    for _ in range(sets):
        low, high = rng.normal(size=n), rng.normal(size=n)
        models = [
            leak_scores(
                list(low + rng.normal(size=n) / 2), list(high + gap + rng.normal(size=n) / 2)
            )
            for gap in (0.0, 1.0, 2.0)
        ]
        moved, gap = models[1].minus(models[0]), models[2].minus(models[0])
        for k, part in enumerate((mean(moved, draws), ratio(moved, gap, draws))):
            assert part.ci is not None
            hits[k] += part.ci[0] <= truth[k] <= part.ci[1]
    # 300 sets: the standard error of a share of 95% is 1.3%.
    assert (hits >= 0.92 * sets).all(), hits
    assert (hits <= 0.985 * sets).all(), hits


def test_p_values_are_uniform_without_effect() -> None:
    rng, draws = np.random.default_rng(5), draw(50, 0)
    first, second, _ = verbatim_like(np.random.default_rng(1), 1_000_000)
    shift = float(second.mean() - first.mean())
    found = []
    for _ in range(500):
        full, quantized, _ = verbatim_like(rng, 50)
        found.append(mean(Column(quantized - full - shift, (-200, 200)), draws).p)
    below = sum(p is not None and p < 0.05 for p in found) / len(found)
    assert 0.02 <= below <= 0.08


def test_the_mean_of_much_normal_data_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = mean(Column(values, (-1e3, 1e3)), draw(400, 0))
    want = scipy_stats.t.interval(0.95, 399, values.mean(), scipy_stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert found.ci == pytest.approx(want, abs=0.02)


def test_the_ratio_of_much_normal_data_has_fiellers_interval() -> None:
    rng, n = np.random.default_rng(0), 400
    bottom = rng.normal(10, 3, size=n)
    top = 0.4 * bottom + rng.normal(0, 2, size=n)
    found = ratio(Column(top, (-1e3, 1e3)), Column(bottom, (-1e3, 1e3)), draw(n, 0))
    # Every r that Student's test of mean(top - r bottom) = 0 does not refuse, found by search.
    kept = [
        r
        for r in np.arange(0.3, 0.5, 0.0005)
        if scipy_stats.ttest_1samp(top - r * bottom, 0).pvalue >= 0.05
    ]
    assert found.ci == pytest.approx((min(kept), max(kept)), abs=0.003)


def test_a_turned_sign_turns_nothing() -> None:
    rng = np.random.default_rng(2)
    top, bottom = rng.normal(2, 1, 50), rng.normal(5, 1, 50)
    draws = draw(50, 0)
    plain = ratio(Column(top, (-99, 99)), Column(bottom, (-99, 99)), draws)
    turned = ratio(Column(-top, (-99, 99)), Column(-bottom, (-99, 99)), draws)
    assert turned.ci == pytest.approx(plain.ci)


def test_a_denominator_that_may_be_0_bounds_nothing() -> None:
    rng = np.random.default_rng(2)
    top, bottom = rng.normal(5, 1, 30), rng.normal(0.1, 5, 30)
    found = ratio(Column(top, (-99, 99)), Column(bottom, (-99, 99)), draw(30, 0))
    assert found.ci is None


@pytest.mark.parametrize("n", [5, 20, 100])
def test_samples_that_are_all_alike_have_the_exact_bound(n: int) -> None:
    found = mean(Column(np.zeros(n), POINTS), draw(n, 0))
    # No success in n: the largest share that leaves 2.5% for it.
    most = 100 * (1 - 0.025 ** (1 / n))
    assert found.ci == pytest.approx((-most, most))
    assert found.p == 1.0


def test_few_odd_samples_have_clopper_and_pearsons_bound() -> None:
    values = np.zeros(50)
    values[:2] = 60.0
    found = mean(Column(values, POINTS), draw(50, 0))
    upper = scipy_stats.binomtest(2, 50).proportion_ci(0.95, "exact").high
    lower = scipy_stats.binomtest(0, 50).proportion_ci(0.95, "exact").high
    assert found.ci == pytest.approx((-100 * lower, 100 * upper))


def test_models_that_answer_almost_alike_have_a_narrow_ratio() -> None:
    rng = np.random.default_rng(0)
    bottom = rng.choice([0.0, 100.0], 50)
    top = bottom.copy()
    top[:2] = 100 - top[:2]
    found = ratio(Column(top, (0, 100)), Column(bottom, (0, 100)), draw(50, 0))
    assert found.ci is not None
    # At most 13.7 points of difference (2 of 50, exact) over at least 35 points of denominator.
    assert 0.6 < found.ci[0] < 1 < found.ci[1] < 1.4


def test_a_single_sample_has_no_interval() -> None:
    one = Column(np.array([3.0]), POINTS)
    assert mean(one, draw(1, 0)).ci is None
    assert ratio(one, one, draw(1, 0)).ci is None
    assert mean(one, draw(1, 0)).p is None


@given(
    st.lists(st.sampled_from([0.0, 1.0, 33.3, 100.0]), min_size=2, max_size=30),
    st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_whatever_comes_an_interval_holds_its_value_and_stays_in_bounds(
    scores: list[float], seed: int
) -> None:
    values = np.array(scores)
    rng = np.random.default_rng(seed)
    other = rng.permutation(values)
    draws = draw(len(values), 0)
    found = mean(Column(values - other, POINTS), draws)
    assert found.ci is not None
    assert found.ci[0] - 1e-9 <= found.value <= found.ci[1] + 1e-9
    assert -200 <= found.ci[0] <= found.ci[1] <= 200
    if values.any():
        share = ratio(Column(other, (0, 100)), Column(values, (0, 100)), draws)
        assert share.value == pytest.approx(1)
        if share.ci is not None:
            assert share.ci[0] - 1e-9 <= 1 <= share.ci[1] + 1e-9


def test_the_mean_of_leak_scores_is_the_auc() -> None:
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 30) * 1.0, rng.integers(2, 9, 20) * 1.0
    found = mean(leak_scores(list(members), list(others)), draw(30, 0, 20))
    assert found.value == pytest.approx(auc(list(members), list(others)))
    assert found.ci is not None
    assert found.ci[0] < found.value < found.ci[1]


def test_the_same_seed_draws_the_same() -> None:
    values = Column(np.random.default_rng(0).normal(size=30), (-99, 99))
    assert mean(values, draw(30, 4)) == mean(values, draw(30, 4))
    assert mean(values, draw(30, 4)) != mean(values, draw(30, 5))


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf, 0.0]])
def test_nothing_and_what_is_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(MetricError, match="no samples, or a score that is not finite"):
        Column(np.array(values), POINTS)


def test_other_refusals() -> None:
    two, three = Column(np.ones(2), POINTS), Column(np.ones(3), POINTS)
    with pytest.raises(MetricError, match="same samples"):
        ratio(two, three, draw(2, 0))
    with pytest.raises(MetricError, match="denominator of 0"):
        ratio(two, Column(np.zeros(2), POINTS), draw(2, 0))
    with pytest.raises(MetricError, match="both groups"):
        mean(Pairs(np.random.default_rng(0).random((9, 9)), (0, 1)), draw(9, 0))


def test_holm_against_hand_computed_families() -> None:
    # 0.01 <= 0.05/4, 0.015 <= 0.05/3, 0.03 > 0.05/2: the rest falls with it.
    assert holm([0.03, 0.01, 0.04, 0.015]) == [False, True, False, True]
    assert holm([0.05]) == [True]
    assert holm([0.051]) == [False]
    assert holm([]) == []


def test_holm_keeps_the_family_wise_error() -> None:
    rng = np.random.default_rng(0)
    wrong = sum(any(holm(list(rng.random(10)))) for _ in range(2000)) / 2000
    assert wrong <= 0.06
