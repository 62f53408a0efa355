"""The intervals against simulation, against closed forms and libraries, and by hand."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from unlearnbench.errors import MetricError
from unlearnbench.metrics.intervals import (
    Draws,
    Estimate,
    Values,
    auc,
    bootstrap_auc,
    bootstrap_mean,
    bootstrap_privleak,
    draw,
    holm,
    mean,
    mean_share,
    pair_wins,
    ratio,
)

Array = NDArray[np.float64]

score = st.floats(-1e6, 1e6)
SETS = 1000
POINTS = (-100.0, 100.0)
Models = tuple[Array, Array, Array]
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


def test_percentile_intervals_are_scipys() -> None:
    for values in (normal(0, 30), np.round(normal(1, 7))):
        want = scipy_stats.bootstrap(
            (values,), np.mean, n_resamples=2000, batch=100, method="percentile", rng=3
        )
        got = bootstrap_mean(values.tolist(), seed=3)
        assert got.ci == pytest.approx(tuple(want.confidence_interval), rel=1e-12)
        assert bootstrap_auc(values, values - 0.1, seed=3).stderr == pytest.approx(
            scipy_stats.bootstrap(
                (values, values - 0.1),
                lambda x, y, axis: (
                    (x[:, :, None] > y[:, None]).mean(axis=(1, 2))
                    + (x[:, :, None] == y[:, None]).mean(axis=(1, 2)) / 2
                ),
                n_resamples=2000,
                batch=100,
                method="percentile",
                rng=3,
            ).standard_error,
            rel=1e-12,
        )


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
    assert bootstrap_mean([0.25], seed=0) == Estimate(0.25)


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
    with pytest.raises(MetricError, match="no samples"):
        Values(np.array([]), POINTS)


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
    assert same == Estimate(0.5, (0.5, 0.5), 0.0)
    members, nonmembers = np.round(normal(1, 60, 0.5)), np.round(normal(2, 60))
    got = bootstrap_auc(members, nonmembers, seed=0)
    assert got.stderr == pytest.approx(delong(members, nonmembers), rel=0.12)
    assert got.ci is not None
    assert sum(got.ci) / 2 == pytest.approx(got.value, abs=0.02)


def test_groups_that_are_told_apart_have_no_spread() -> None:
    got = bootstrap_auc(np.array([1.0, 2.0]), np.array([3.0, 4.0]), seed=0)
    assert got == Estimate(0.0, (0.0, 0.0), 0.0)


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
    assert bootstrap_privleak(scores, scores, seed=0) == Estimate(0.0, (0.0, 0.0), 0.0)


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
    assert bootstrap_privleak(one, one, seed=0) == Estimate(0.0)


def groups(members: Array, nonmembers: Array) -> Values:
    return Values(pair_wins(members, nonmembers), (0.0, 1.0))


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
        moved, gap = Values(quantized - full, POINTS), Values(target - full, POINTS)
        kept = Values(quantized, (0, 100)), Values(target, (0, 100))
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
            groups(low + rng.normal(size=n) / 2, high + gap + rng.normal(size=n) / 2)
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
        found.append(mean(Values(quantized - full - shift, (-200, 200)), draws).p)
    below = sum(p is not None and p < 0.05 for p in found) / len(found)
    assert 0.02 <= below <= 0.08


def test_the_mean_of_much_normal_data_has_students_interval() -> None:
    values = np.random.default_rng(0).normal(3, 2, size=400)
    found = mean(Values(values, (-1e3, 1e3)), draw(400, 0))
    want = scipy_stats.t.interval(0.95, 399, values.mean(), scipy_stats.sem(values))
    assert found.value == pytest.approx(values.mean())
    assert found.ci == pytest.approx(want, abs=0.02)


def test_the_ratio_of_much_normal_data_has_fiellers_interval() -> None:
    rng, n = np.random.default_rng(0), 400
    bottom = rng.normal(10, 3, size=n)
    top = 0.4 * bottom + rng.normal(0, 2, size=n)
    found = ratio(Values(top, (-1e3, 1e3)), Values(bottom, (-1e3, 1e3)), draw(n, 0))
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
    plain = ratio(Values(top, (-99, 99)), Values(bottom, (-99, 99)), draws)
    turned = ratio(Values(-top, (-99, 99)), Values(-bottom, (-99, 99)), draws)
    assert turned.ci == pytest.approx(plain.ci)


def test_a_denominator_that_may_be_0_bounds_nothing() -> None:
    rng = np.random.default_rng(2)
    top, bottom = rng.normal(5, 1, 30), rng.normal(0.1, 5, 30)
    found = ratio(Values(top, (-99, 99)), Values(bottom, (-99, 99)), draw(30, 0))
    assert found.ci is None


@pytest.mark.parametrize("n", [5, 20, 100])
def test_samples_that_are_all_alike_have_the_exact_bound(n: int) -> None:
    found = mean(Values(np.zeros(n), POINTS), draw(n, 0))
    # No success in n: the largest share that leaves 2.5% for it.
    most = 100 * (1 - 0.025 ** (1 / n))
    assert found.ci == pytest.approx((-most, most))
    assert found.p == 1.0


def test_few_odd_samples_have_clopper_and_pearsons_bound() -> None:
    values = np.zeros(50)
    values[:2] = 60.0
    found = mean(Values(values, POINTS), draw(50, 0))
    upper = scipy_stats.binomtest(2, 50).proportion_ci(0.95, "exact").high
    lower = scipy_stats.binomtest(0, 50).proportion_ci(0.95, "exact").high
    assert found.ci == pytest.approx((-100 * lower, 100 * upper))


def test_models_that_answer_almost_alike_have_a_narrow_ratio() -> None:
    rng = np.random.default_rng(0)
    bottom = rng.choice([0.0, 100.0], 50)
    top = bottom.copy()
    top[:2] = 100 - top[:2]
    found = ratio(Values(top, (0, 100)), Values(bottom, (0, 100)), draw(50, 0))
    assert found.ci is not None
    # At most 13.7 points of difference (2 of 50, exact) over at least 35 points of denominator.
    assert 0.6 < found.ci[0] < 1 < found.ci[1] < 1.4


def test_a_single_sample_has_no_interval() -> None:
    one = Values(np.array([3.0]), POINTS)
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
    found = mean(Values(values - other, POINTS), draws)
    assert found.ci is not None
    assert found.ci[0] - 1e-9 <= found.value <= found.ci[1] + 1e-9
    assert -200 <= found.ci[0] <= found.ci[1] <= 200
    if values.any():
        share = ratio(Values(other, (0, 100)), Values(values, (0, 100)), draws)
        assert share.value == pytest.approx(1)
        if share.ci is not None:
            assert share.ci[0] - 1e-9 <= 1 <= share.ci[1] + 1e-9


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


def test_a_mean_share_is_over_all_pairs_with_one_draw_of_samples() -> None:
    ours, theirs = np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])
    draws = draw(3, 0)
    assert mean_share([(ours, theirs, draws)]) == Estimate(0.5, (0.5, 0.5))
    both = mean_share([(ours, theirs, draws), (ours[::-1].copy(), theirs, draws)])
    assert both.value == pytest.approx(0.5)
    assert both.ci is not None
    assert both.ci[0] < 0.5 < both.ci[1]
    counts = np.array([[1.0, 1, 1], [3, 0, 0], [0, 0, 3]]) / 3
    by_hand = mean_share([(ours[::-1].copy(), theirs, Draws(counts))])
    # 6 / 12, then 3 / 2, then 1 / 6.
    assert by_hand.ci == pytest.approx(np.quantile([1 / 2, 3 / 2, 1 / 6], [0.025, 0.975]))
    with pytest.raises(MetricError, match="no samples"):
        mean_share([])
