from __future__ import annotations

import math
import random
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unlearnbench.errors import MetricError
from unlearnbench.metrics.stats import (
    Estimate,
    auc,
    bootstrap_auc,
    bootstrap_mean,
    bootstrap_privleak,
)

Array = NDArray[np.float64]

score = st.floats(-1e6, 1e6)
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


@given(values=st.lists(score, min_size=2, max_size=30))
@settings(max_examples=25, deadline=None)
def test_the_mean_and_its_standard_error(values: list[float]) -> None:
    got = bootstrap_mean(values, seed=0)
    scale = 1 + max(map(abs, values))
    assert got.value == pytest.approx(statistics.fmean(values), abs=1e-9 * scale)
    want = statistics.stdev(values) / math.sqrt(len(values))
    assert got.stderr == pytest.approx(want, abs=1e-9 * scale)
    assert got.ci is not None
    low, high = got.ci
    assert min(values) - 1e-9 * scale <= low <= high <= max(values) + 1e-9 * scale


def test_the_standard_error_by_hand() -> None:
    # s^2 = (1 + 0 + 1) / 2 = 1 with n - 1 = 2.
    assert bootstrap_mean([1.0, 2.0, 3.0], seed=0).stderr == pytest.approx(1 / math.sqrt(3))


def test_the_interval_covers_the_truth_about_95_times_in_100() -> None:
    # 300 data sets of 60 draws; the true mean is 1. A percentile interval covers slightly less
    # than 95%, and 300 repeats have a standard error of 1.3 points.
    draws = np.random.default_rng(11).exponential(1.0, (300, 60))
    hits = 0
    for row in draws:
        ci = bootstrap_mean(row.tolist(), seed=0).ci
        assert ci is not None
        hits += ci[0] <= 1.0 <= ci[1]
    assert 0.89 <= hits / 300 <= 0.98


def test_the_interval_is_as_wide_as_a_normal_one_where_data_are_normal() -> None:
    values = normal(3, 400)
    ci = bootstrap_mean(values.tolist(), seed=0).ci
    assert ci is not None
    assert ci[1] - ci[0] == pytest.approx(2 * 1.96 * values.std(ddof=1) / 20, rel=0.08)


@given(values=st.lists(score, min_size=1, max_size=20), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_the_same_seed_gives_the_same_interval(values: list[float], seed: int) -> None:
    assert bootstrap_mean(values, seed) == bootstrap_mean(values, seed)


def test_another_seed_gives_another_interval_and_the_same_value() -> None:
    values = normal(1, 30).tolist()
    one, two = bootstrap_mean(values, 1), bootstrap_mean(values, 2)
    assert one.ci != two.ci
    assert (one.value, one.stderr) == (two.value, two.stderr)


def test_the_seed_leaves_the_global_generators_alone() -> None:
    random.seed(1)
    state = random.getstate()
    before = np.random.get_state(legacy=False)["state"]["key"].copy()
    bootstrap_mean([1.0, 2.0, 4.0], 0)
    assert random.getstate() == state
    assert (np.random.get_state(legacy=False)["state"]["key"] == before).all()


def test_a_single_sample_has_no_interval_and_no_standard_error() -> None:
    assert bootstrap_mean([0.25], seed=0) == Estimate(0.25, None, None)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_samples_that_are_all_equal_have_a_defined_interval(value: float) -> None:
    # As when a target model recites every text.
    got = bootstrap_mean([value] * 7, seed=0)
    assert got.value == pytest.approx(value)
    assert got.stderr == pytest.approx(0.0, abs=1e-15)
    assert got.ci == pytest.approx((value, value))


def test_an_average_over_nothing_raises() -> None:
    with pytest.raises(MetricError, match="no samples"):
        bootstrap_mean([], seed=0)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("others", [[], [0.0], [0.0, 1.0]])
def test_a_value_that_is_not_finite_raises(value: float, others: list[float]) -> None:
    values = [*others, value]
    with pytest.raises(MetricError, match="NaN or infinite"):
        bootstrap_mean(values, seed=0)
    with pytest.raises(MetricError, match="NaN or infinite"):
        auc(values, [1.0])
    with pytest.raises(MetricError, match="NaN or infinite"):
        auc([1.0], values)
    with pytest.raises(MetricError, match="NaN or infinite"):
        bootstrap_auc(np.array(values), np.array([1.0, 2.0]), seed=0)


@given(factor=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
@settings(deadline=None)
def test_an_estimate_scales_with_its_interval(factor: float, offset: float) -> None:
    got = Estimate(2.0, 0.5, (1.0, 4.0)).scaled(factor, offset)
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


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.5])
def test_the_spread_of_an_auc_is_delongs(shift: float) -> None:
    members, nonmembers = normal(1, 70, shift), normal(2, 50)
    got = bootstrap_auc(members, nonmembers, seed=0)
    assert got.value == pytest.approx(count_auc(members.tolist(), nonmembers.tolist()))
    want = delong(members, nonmembers)
    assert got.stderr == pytest.approx(want, rel=0.12)
    assert got.ci is not None
    assert 0 <= got.ci[0] <= got.value <= got.ci[1] <= 1
    assert got.ci[1] - got.ci[0] == pytest.approx(2 * 1.96 * want, rel=0.12)


@given(members=tied, nonmembers=tied)
@settings(max_examples=20, deadline=None)
def test_an_aucs_interval_stays_within_0_and_1(
    members: list[float], nonmembers: list[float]
) -> None:
    got = bootstrap_auc(np.array(members), np.array(nonmembers), seed=0)
    if min(len(members), len(nonmembers)) < 2:
        assert (got.stderr, got.ci) == (None, None)
        return
    assert got.stderr is not None
    assert got.stderr >= 0
    assert got.ci is not None
    assert 0 <= got.ci[0] <= got.ci[1] <= 1


def test_ties_count_half_in_every_resample_too() -> None:
    same = bootstrap_auc(np.full(6, 2.0), np.full(5, 2.0), seed=0)
    assert same == Estimate(0.5, 0.0, (0.5, 0.5))
    members, nonmembers = np.round(normal(1, 60, 0.5)), np.round(normal(2, 60))
    got = bootstrap_auc(members, nonmembers, seed=0)
    assert got.stderr == pytest.approx(delong(members, nonmembers), rel=0.12)
    assert got.ci is not None
    assert sum(got.ci) / 2 == pytest.approx(got.value, abs=0.02)


def test_groups_that_are_told_apart_have_no_spread() -> None:
    got = bootstrap_auc(np.array([1.0, 2.0]), np.array([3.0, 4.0]), seed=0)
    assert got == Estimate(0.0, 0.0, (0.0, 0.0))


def resampled_privleak(
    scores: tuple[Array, Array], reference: tuple[Array, Array], repeats: int
) -> list[float]:
    """PrivLeak of resamples in which one draw of texts serves both runs, pair by pair."""
    generator, found = random.Random(4), []
    m, n = len(scores[0]), len(scores[1])
    for _ in range(repeats):
        rows = [generator.randrange(m) for _ in range(m)]
        columns = [generator.randrange(n) for _ in range(n)]
        ours = count_auc(scores[0][rows].tolist(), scores[1][columns].tolist())
        theirs = count_auc(reference[0][rows].tolist(), reference[1][columns].tolist())
        found.append((ours - theirs) / theirs * 100)
    return sorted(found)


def test_privleaks_interval_draws_a_text_in_both_runs() -> None:
    # The two runs agree on most texts, so paired draws spread far less than separate ones would.
    reference = (normal(1, 24), normal(2, 18))
    scores = (reference[0] + 0.3 * normal(3, 24), reference[1] + 0.3 * normal(4, 18))
    got = bootstrap_privleak(scores, reference, seed=0)
    base = count_auc(reference[0].tolist(), reference[1].tolist())
    ours = count_auc(scores[0].tolist(), scores[1].tolist())
    assert got.value == pytest.approx((ours - base) / base * 100)
    spread = resampled_privleak(scores, reference, 1500)
    assert got.stderr == pytest.approx(statistics.stdev(spread), rel=0.12)
    width = spread[int(0.975 * 1500)] - spread[int(0.025 * 1500)]
    assert got.ci is not None
    assert got.ci[1] - got.ci[0] == pytest.approx(width, rel=0.15)
    separate = statistics.stdev(
        100 * (a - b) / base
        for a, b in zip(
            resampled_aucs(scores, 300, 5), resampled_aucs(reference, 300, 6), strict=True
        )
    )
    assert got.stderr is not None
    assert got.stderr < 0.6 * separate


def resampled_aucs(scores: tuple[Array, Array], repeats: int, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [
        count_auc(
            generator.choices(scores[0].tolist(), k=len(scores[0])),
            generator.choices(scores[1].tolist(), k=len(scores[1])),
        )
        for _ in range(repeats)
    ]


def test_a_run_against_itself_leaks_nothing_in_every_resample() -> None:
    scores = (normal(1, 20), normal(2, 30))
    assert bootstrap_privleak(scores, scores, seed=0) == Estimate(0.0, 0.0, (0.0, 0.0))


def test_a_reference_auc_of_0_raises() -> None:
    told_apart = (np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    with pytest.raises(MetricError, match="reference's AUC is 0"):
        bootstrap_privleak((np.array([1.0, 9.0]), np.array([3.0, 4.0])), told_apart, seed=0)


def test_a_resample_with_a_reference_auc_of_0_gives_no_interval() -> None:
    # One member in three lies above; a third of a third of the draws never pick it.
    reference = (np.array([1.0, 2.0, 9.0]), np.array([3.0, 4.0, 5.0]))
    scores = (np.array([1.0, 9.0, 9.5]), np.array([3.0, 4.0, 5.0]))
    got = bootstrap_privleak(scores, reference, seed=0)
    assert got.value == pytest.approx((2 / 3 - 1 / 3) / (1 / 3) * 100)
    assert (got.stderr, got.ci) == (None, None)


@pytest.mark.parametrize("sizes", [(2, 3), (3, 2)])
def test_another_number_of_texts_in_the_reference_raises(sizes: tuple[int, int]) -> None:
    scores = (np.array([1.0, 2.0, 9.0]), np.array([3.0, 4.0, 5.0]))
    other = (np.arange(float(sizes[0])) + 9, np.arange(float(sizes[1])))
    with pytest.raises(MetricError, match="another number of texts"):
        bootstrap_privleak(scores, other, seed=0)


def test_one_text_in_each_group_gives_privleak_without_interval() -> None:
    one = (np.array([2.0]), np.array([1.0]))
    assert bootstrap_privleak(one, one, seed=0) == Estimate(0.0, None, None)
