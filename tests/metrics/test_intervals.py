"""The intervals against closed forms, libraries and loops; the simulations stand beside it."""

from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from unlearnbench.errors import MetricError
from unlearnbench.metrics.intervals import (
    Estimate,
    Values,
    average,
    draw,
    holm,
    mean,
    pooled,
    ratio,
    with_trainings,
)
from unlearnbench.metrics.membership import auc, leak_estimate, pair_wins

Array = NDArray[np.float64]

score = st.floats(-1e6, 1e6)
POINTS = (0.0, 100.0)
# Few distinct values, so that ties are common.
tied = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12)


def count_auc(members: list[float], nonmembers: list[float]) -> float:
    points = 0.0
    for low in members:
        for high in nonmembers:
            points += 1.0 if high < low else 0.5 if high == low else 0.0
    return points / (len(members) * len(nonmembers))


def normal(seed: int, n: int, shift: float = 0.0) -> Array:
    return np.random.default_rng(seed).normal(shift, 1.0, n)


def test_an_average_over_nothing_raises() -> None:
    with pytest.raises(MetricError, match="no samples"):
        Values(np.array([]), POINTS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [[], [0.0], [0.0, 1.0]])
def test_a_value_that_is_not_finite_raises(value: float, others: list[float]) -> None:
    values = [*others, value]
    with pytest.raises(MetricError, match="NaN or infinite"):
        auc(values, [1.0])
    with pytest.raises(MetricError, match="NaN or infinite"):
        auc([1.0], values)
    with pytest.raises(MetricError, match="NaN or infinite"):
        Values(np.array(values), POINTS)


@given(factor=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
@settings(deadline=None)
def test_an_estimate_scales_with_its_interval(factor: float, offset: float) -> None:
    got = Estimate(2.0, (1.0, 4.0), 0.5).scaled(factor, offset)
    assert got.value == pytest.approx(2 * factor + offset)
    assert got.stderr == pytest.approx(0.5 * factor)
    assert got.ci == pytest.approx((factor + offset, 4 * factor + offset))
    assert Estimate(2.0).scaled(factor, offset).ci is None


@given(members=tied, nonmembers=tied)
@settings(deadline=None)
def test_auc_counts_pairs_and_ties_as_half(members: list[float], nonmembers: list[float]) -> None:
    assert auc(members, nonmembers) == pytest.approx(count_auc(members, nonmembers), abs=1e-12)


@given(members=st.lists(score, min_size=1, max_size=10), other=st.lists(score, min_size=1))
@settings(deadline=None)
def test_auc_turns_round_when_the_groups_do(members: list[float], other: list[float]) -> None:
    assert auc(members, other) == pytest.approx(1 - auc(other, members), abs=1e-12)


def test_auc_by_hand() -> None:
    assert auc([1.0, 2.0], [3.0, 4.0]) == 0.0  # members lower: recognised
    assert auc([3.0, 4.0], [1.0, 2.0]) == 1.0
    assert auc([1.0, 1.0, 1.0], [1.0]) == 0.5
    assert auc([1.0, 3.0], [2.0, 2.0, 3.0]) == pytest.approx(2.5 / 6)


@pytest.mark.parametrize(("members", "nonmembers"), [([], [1.0]), ([1.0], []), ([], [])])
def test_auc_of_an_empty_group_raises(members: list[float], nonmembers: list[float]) -> None:
    with pytest.raises(MetricError, match="no samples"):
        auc(members, nonmembers)


def delong(members: Array, nonmembers: Array) -> float:
    """Standard error of the AUC after DeLong et al. 1988, by placements, one by one."""
    by_member = [count_auc([x], nonmembers.tolist()) for x in members.tolist()]
    by_other = [count_auc(members.tolist(), [y]) for y in nonmembers.tolist()]
    return math.sqrt(
        statistics.variance(by_member) / len(by_member)
        + statistics.variance(by_other) / len(by_other)
    )


def groups(members: Array, nonmembers: Array) -> Values:
    return Values(pair_wins(members, nonmembers), (0.0, 1.0))


def test_the_mean_of_much_normal_data_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = mean(Values(values, (-10, 16)), draw(400, 0))
    want = scipy_stats.t.interval(0.95, 399, values.mean(), scipy_stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert found.ci == pytest.approx(want, abs=0.04)


def test_the_ratio_of_much_normal_data_has_fiellers_interval() -> None:
    rng, n = np.random.default_rng(0), 400
    bottom = rng.normal(10, 3, size=n)
    top = 0.4 * bottom + rng.normal(0, 2, size=n)
    found = ratio(Values(top, (-10, 25)), Values(bottom, (-10, 25)), draw(n, 0))
    # Every r that Student's test of mean(top - r bottom) = 0 does not refuse, found by search.
    kept = [
        r
        for r in np.arange(0.3, 0.5, 0.0005)
        if scipy_stats.ttest_1samp(top - r * bottom, 0).pvalue >= 0.05
    ]
    assert found.ci == pytest.approx((min(kept), max(kept)), abs=0.006)


def test_a_turned_sign_turns_nothing() -> None:
    rng = np.random.default_rng(2)
    top, bottom = rng.normal(2, 1, 50), rng.normal(5, 1, 50)
    draws = draw(50, 0)
    plain = ratio(Values(top, (-99, 99)), Values(bottom, (-99, 99)), draws)
    turned = ratio(Values(-top, (-99, 99)), Values(-bottom, (-99, 99)), draws)
    assert turned.ci == pytest.approx(plain.ci, abs=0.03)


def test_a_denominator_that_may_be_0_bounds_nothing() -> None:
    rng = np.random.default_rng(2)
    top, bottom = rng.normal(5, 1, 30), rng.normal(0.1, 5, 30)
    found = ratio(Values(top, (-99, 99)), Values(bottom, (-99, 99)), draw(30, 0))
    assert found.ci is None


def test_a_single_sample_has_no_interval() -> None:
    one = Values(np.array([3.0]), POINTS)
    assert mean(one, draw(1, 0)).ci is None
    assert ratio(one, one, draw(1, 0)).ci is None
    assert mean(one, draw(1, 0)).p is None


def test_the_mean_of_leak_scores_is_the_auc() -> None:
    rng = np.random.default_rng(0)
    members = rng.integers(0, 9, 30).astype(np.float64)
    others = rng.integers(2, 9, 20).astype(np.float64)
    found = mean(groups(members, others), draw(30, 0, 20))
    assert found.value == pytest.approx(auc(members, others))
    assert found.ci is not None
    assert found.ci[0] < found.value < found.ci[1]


def test_the_same_seed_draws_the_same() -> None:
    values = Values(np.random.default_rng(0).normal(size=30), (-99, 99))
    assert mean(values, draw(30, 4)) == mean(values, draw(30, 4))
    assert mean(values, draw(30, 4)) != mean(values, draw(30, 5))


def test_other_refusals() -> None:
    two, three = Values(np.ones(2), POINTS), Values(np.ones(3), POINTS)
    with pytest.raises(MetricError, match="same samples"):
        ratio(two, three, draw(2, 0))
    with pytest.raises(MetricError, match="denominator of 0"):
        ratio(two, Values(np.zeros(2), POINTS), draw(2, 0))
    with pytest.raises(MetricError, match="both groups"):
        mean(Values(np.random.default_rng(0).random((9, 9)), (0, 1)), draw(9, 0))


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


def points(*scores: float) -> Values:
    return Values(np.array(scores), POINTS)


@given(st.lists(st.floats(0, 100), min_size=2, max_size=30))
@settings(max_examples=25, deadline=None)
def test_the_mean_and_its_standard_error(scores: list[float]) -> None:
    found = mean(points(*scores), draw(len(scores), 0))
    assert found.value == pytest.approx(statistics.fmean(scores), abs=1e-9)
    want = statistics.stdev(scores) / math.sqrt(len(scores))
    assert (found.stderr or 0.0) == pytest.approx(want, abs=1e-8)


@pytest.mark.parametrize("n", [5, 20, 48, 100])
def test_perfect_forgetting_has_the_exact_upper_end(n: int) -> None:
    most = 100 * (1 - 0.025 ** (1 / n))
    found = mean(points(*[0.0] * n), draw(n, 0))
    assert found.ci == pytest.approx((0, most), abs=1e-12)
    assert found.stderr is None, "alike samples show no spread, and 0 would be one"
    change = mean(points(*[0.0] * n).minus(points(*[0.0] * n)), draw(n, 0))
    assert change.ci == pytest.approx((-most, most))
    assert change.p == 1.0
    recited = mean(points(*[100.0] * n), draw(n, 0))
    assert recited.ci == pytest.approx((100 - most, 100))


@pytest.mark.parametrize(("right", "n"), [(1, 48), (3, 48), (24, 48), (47, 48), (9, 16)])
def test_answers_that_are_right_or_wrong_have_clopper_and_pearsons_interval(
    right: int, n: int
) -> None:
    found = mean(points(*[100.0] * right, *[0.0] * (n - right)), draw(n, 0))
    want = scipy_stats.binomtest(right, n).proportion_ci(0.95, "exact")
    assert found.ci is not None
    assert found.ci[1] == pytest.approx(100 * want.high, abs=1e-9)
    assert found.ci[0] == pytest.approx(100 * want.low, abs=1e-9)


def test_few_odd_changes_have_gaffkes_interval_by_loops() -> None:
    changes = [0.0] * 26 + [30.0, 85.0, -40.0, 60.0]
    zero = points(*[0.0] * 30)
    after = points(*(max(x, 0.0) for x in changes))
    before = points(*(max(-x, 0.0) for x in changes))
    found = mean(after.minus(before), draw(30, 0))
    generator = random.Random(1)
    ends: list[list[float]] = [[], []]
    for _ in range(8000):
        weights = [generator.expovariate(1) for _ in range(31)]
        for side, unseen in enumerate((-100.0, 100.0)):
            total = sum(w * x for w, x in zip(weights, [*changes, unseen], strict=True))
            ends[side].append(total / sum(weights))
    assert found.ci is not None
    assert found.ci[0] == pytest.approx(sorted(ends[0])[200], abs=0.5)
    assert found.ci[1] == pytest.approx(sorted(ends[1])[-200], abs=0.5)
    assert mean(zero, draw(30, 0)).ci != found.ci


def test_an_unseen_sample_is_as_far_out_as_one_that_was_seen() -> None:
    rng = np.random.default_rng(0)
    narrow = rng.normal(50, 15, 40)
    found = mean(points(*narrow), draw(40, 0))
    assert found.ci is not None
    want = scipy_stats.t.interval(0.95, 39, narrow.mean(), scipy_stats.sem(narrow))
    assert want[1] - want[0] < found.ci[1] - found.ci[0] < 1.3 * (want[1] - want[0])
    alike = mean(points(*(50 + 0.2 * (narrow - 50))), draw(40, 0))
    assert alike.ci is not None
    most = 50 * (1 - 0.025 ** (1 / 40))
    assert alike.ci[1] > 50 + 0.9 * most, "none stands out, and yet there may be one at 100"


@pytest.mark.parametrize(("moved", "n"), [(50, 50), (20, 50), (22, 40), (12, 60), (8, 16), (5, 20)])
def test_p_is_the_sign_tests_where_all_answers_move_from_nothing_to_all(moved: int, n: int) -> None:
    before, after = points(*[0.0] * n), points(*[100.0] * moved, *[0.0] * (n - moved))
    found = mean(after.minus(before), draw(n, 0)).p
    want = scipy_stats.binomtest(moved, moved).pvalue  # two-sided: 2 x 0.5^moved
    assert found == pytest.approx(want, rel=0.15)


def test_p_agrees_with_a_product_where_nothing_fell() -> None:
    # P(sum a_i E_i < b E) = prod b / (b + a_i) for exponential E, b the unseen sample's fall.
    moves = [20.0, 35.0, 50.0, 64.0, 71.0, 80.0, 90.0, 100.0]
    before, after = points(*[0.0] * 24), points(*moves, *[0.0] * 16)
    want = 2 * math.prod(100 / (100 + move) for move in moves)
    assert mean(after.minus(before), draw(24, 0)).p == pytest.approx(want, rel=0.1)


def test_p_and_the_interval_say_the_same() -> None:
    rng, draws = np.random.default_rng(4), draw(30, 0)
    for level in np.linspace(-25, 25, 40):
        base = rng.uniform(30, 70, 30)
        moved = points(*np.clip(base + level + rng.normal(0, 40, 30), 0, 100)).minus(points(*base))
        found = mean(moved, draws)
        assert found.ci is not None
        assert found.p is not None
        if abs(found.p - 0.05) > 0.002:
            assert (found.p < 0.05) is not (found.ci[0] <= 0 <= found.ci[1])


@given(st.lists(st.sampled_from([0.0, 1.0, 33.3, 100.0]), min_size=2, max_size=30), st.integers(0))
@settings(max_examples=60, deadline=None)
def test_whatever_comes_an_interval_holds_its_value_and_stays_in_bounds(
    scores: list[float], seed: int
) -> None:
    values = points(*scores)
    other = points(*np.random.default_rng(seed).permutation(scores))
    draws = draw(len(scores), 0)
    found = mean(values.minus(other), draws)
    assert found.ci is not None
    assert found.ci[0] - 1e-9 <= found.value <= found.ci[1] + 1e-9
    assert -100 - 1e-9 <= found.ci[0] <= found.ci[1] <= 100 + 1e-9
    if values.values.any():
        share = ratio(other, values, draws)
        assert share.value == pytest.approx(1)
        if share.ci is not None:
            assert share.ci[0] - 1e-9 <= 1 <= share.ci[1] + 1e-9


def test_a_model_against_itself_differs_by_nothing_and_keeps_all() -> None:
    own, draws = points(*np.random.default_rng(0).uniform(0, 100, 30)), draw(30, 0)
    assert mean(own.minus(own), draws).ci == (0.0, 0.0)
    assert ratio(own, own, draws).ci == (1.0, 1.0)
    leak = groups(normal(0, 30), normal(1, 30, 1))
    assert ratio(leak, leak, draw(30, 0, 30)).ci == (1.0, 1.0)


def test_scaling_both_sides_moves_nothing() -> None:
    draws, zero = draw(50, 0, 50), groups(normal(1, 50), normal(2, 50))
    for gap in (9.0, 2.0, 0.5):
        own = groups(normal(3, 50), normal(4, 50, gap))
        plain = ratio(own, zero, draws)
        scaled = [Values(100 * v.values, (0.0, 100.0)) for v in (own, zero)]
        again = ratio(scaled[0], scaled[1], draws)
        assert again.ci == pytest.approx(plain.ci, rel=1e-6)
        assert again.value == pytest.approx(plain.value)


@pytest.mark.parametrize("odd", [0, 1, 3, 6])
@pytest.mark.parametrize("n", [16, 50, 100])
def test_privleak_is_never_narrower_than_the_aucs_exact_interval(n: int, odd: int) -> None:
    draws = draw(n, 0, n)
    for seed in range(5):
        forget = normal(seed, n)
        forget[:odd] += 200
        own, zero = groups(forget, normal(seed + 50, n, 100)), groups(normal(3, n), normal(4, n))
        exact, found = mean(own, draws).ci, leak_estimate(own, zero, draws).ci
        assert exact is not None
        assert found is not None
        assert found[0] <= 100 * (exact[0] / zero.mean - 1) + 1e-9
        assert found[1] >= 100 * (exact[1] / zero.mean - 1) - 1e-9


@pytest.mark.parametrize("n", [16, 50, 100])
def test_texts_that_are_told_apart_have_the_exact_bound(n: int) -> None:
    found = mean(groups(normal(0, n), normal(1, n, 100)), draw(n, 0, n))
    assert found.value == 0
    assert found.ci == pytest.approx((0, 1 - 0.025 ** (1 / n)))
    smaller = mean(groups(normal(0, n), normal(1, 10, 100)), draw(n, 0, 10))
    assert smaller.ci == pytest.approx((0, 1 - 0.025 ** (1 / min(n, 10))))


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
def test_the_spread_of_an_auc_is_delongs(shift: float) -> None:
    members, nonmembers = normal(1, 70, shift), normal(2, 50)
    found = mean(groups(members, nonmembers), draw(70, 0, 50))
    want = delong(members, nonmembers)
    assert found.stderr == pytest.approx(want)
    assert found.ci is not None
    assert 2 * 1.9 * want < found.ci[1] - found.ci[0] < 2 * 1.96 * 1.25 * want


def test_one_text_is_no_crowd() -> None:
    """A forget text that changes places with every holdout text is one text, not fifty pairs."""
    n = 50
    forget, holdout = normal(0, n), normal(1, n, 100)
    moved = forget.copy()
    moved[0] += 300
    change = groups(moved, holdout).minus(groups(forget, holdout))
    found = mean(change, draw(n, 0, n))
    assert found.value == pytest.approx(1 / n)
    assert found.ci is not None
    assert found.ci[0] < 0 < found.ci[1]
    assert found.p is not None
    assert found.p > 0.2


def test_pooled_models_are_averaged_sample_by_sample() -> None:
    models = [points(0, 50, 100), points(100, 50, 0), points(50, 50, 50)]
    found = pooled(models)
    assert found.values == pytest.approx([50, 50, 50])
    assert found.bounds == pytest.approx((0, 100))
    assert pooled(models[:1]) is models[0]


def test_trainings_add_students_interval_as_squares() -> None:
    singles = [10.0, 14.0, 18.0]
    found = with_trainings(Estimate(14.0, (12.0, 17.0), 1.0, 1e-9), singles, 0.95)
    half = scipy_stats.t.ppf(0.975, 2) * 4 / math.sqrt(3)
    assert found.ci == pytest.approx((14 - math.hypot(2, half), 14 + math.hypot(3, half)))
    assert found.stderr == pytest.approx(math.hypot(1, 4 / math.sqrt(3)))
    assert found.p is not None
    assert found.p == pytest.approx(scipy_stats.ttest_1samp(singles, 0).pvalue, rel=0.3)
    assert with_trainings(Estimate(14.0, (12.0, 17.0)), [14.0], 0.95).ci == (12.0, 17.0)
    clipped = with_trainings(Estimate(14.0, (12.0, 17.0)), singles, 0.95, (8.0, 20.0))
    assert clipped.ci == (8.0, 20.0)


def test_an_average_of_separate_figures() -> None:
    found = average([Estimate(0.2, (0.1, 0.5)), Estimate(0.4, (0.4, 0.8))])
    assert found.value == pytest.approx(0.3)
    assert found.ci == pytest.approx((0.3 - 0.05, 0.3 + 0.25))
    assert average([Estimate(0.2, (0.1, 0.5)), Estimate(0.4)]).ci is None
    with pytest.raises(MetricError, match="no samples"):
        average([])


def test_the_draws_leave_the_global_generators_alone() -> None:
    random.seed(1)
    state, before = random.getstate(), np.random.get_state(legacy=False)["state"]["key"].copy()
    mean(points(1, 2, 4), draw(3, 0))
    assert random.getstate() == state
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def test_a_score_that_cannot_be_below_0_is_not_tested_against_it() -> None:
    own, draws = points(10, 50, 90), draw(3, 0)
    assert mean(own, draws).p is None
    assert mean(own.minus(points(20, 20, 20)), draws).p is not None


@given(st.lists(st.floats(0, 100), min_size=2, max_size=25), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_p_is_a_probability_whatever_moves(scores: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    before = points(*np.clip(np.array(scores) * rng.uniform(0, 1.2, len(scores)), 0, 100))
    found = mean(points(*scores).minus(before), draw(len(scores), 0)).p
    assert found is not None
    assert 0 < found <= 1


def test_privleak_has_no_interval_where_the_zero_explodes() -> None:
    own, zero = groups(normal(0, 50), normal(1, 50, 1)), groups(normal(2, 50), normal(3, 50, 4))
    assert 0 < zero.mean < 0.05
    found = leak_estimate(own, zero, draw(50, 0, 50))
    assert found.value == pytest.approx(100 * (own.mean / zero.mean - 1))
    assert (found.ci, found.stderr) == (None, None)
