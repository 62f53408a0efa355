from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unlearnbench.errors import MetricError
from unlearnbench.metrics.membership import (
    ATTACKS,
    K_PERCENTS,
    ReferenceScores,
    min_k,
    min_k_plus_plus,
    privleak,
    score_text,
    summarize,
)
from unlearnbench.requests import Scored

logprob = st.floats(-30, 0)
spread = st.tuples(logprob, st.floats(-20, 0), st.floats(0, 10))


def array(values: Sequence[float]) -> NDArray[np.float64]:
    return np.array(values, dtype=np.float64)


def scored(
    logprobs: Sequence[float],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Scored:
    n = len(logprobs)
    return Scored("t/0", array(logprobs), array(mean or [-1.0] * n), array(std or [1.0] * n))


def mean_of_lowest(values: Sequence[float], k: int) -> float:
    """One by one: take out the lowest, k times."""
    left, total = list(values), 0.0
    for _ in range(k):
        lowest = min(left)
        left.remove(lowest)
        total += lowest
    return total / k


@pytest.mark.parametrize("percent", K_PERCENTS)
def test_k_is_int_of_the_fraction_for_every_length_to_500(percent: int) -> None:
    for n in range(501):
        k = int(percent / 100 * n)
        logprobs = -np.arange(1.0, n + 1)  # the mean of the k lowest is -(n - (k - 1) / 2)
        if k < 1:
            with pytest.raises(MetricError, match=f"text of {n} scored tokens is too short"):
                min_k(logprobs, percent)
        else:
            assert 2 * (n - min_k(logprobs, percent)) + 1 == pytest.approx(k, abs=1e-9), n


def test_k_at_forty_percent_by_hand() -> None:
    # 40% of 4 tokens is 1.6: one token; of 5 tokens: two.
    assert min_k(array([-4.0, -1.0, -2.0, -3.0]), 40) == 4.0
    assert min_k(array([-4.0, -1.0, -2.0, -3.0, -0.5]), 40) == 3.5


@given(logprobs=st.lists(logprob, min_size=20, max_size=80), percent=st.sampled_from(K_PERCENTS))
@settings(deadline=None)
def test_min_k_is_the_plain_definition(logprobs: list[float], percent: int) -> None:
    want = -mean_of_lowest(logprobs, int(percent / 100 * len(logprobs)))
    assert min_k(array(logprobs), percent) == pytest.approx(want, abs=1e-9)


@given(tokens=st.lists(spread, min_size=20, max_size=80), percent=st.sampled_from(K_PERCENTS))
@settings(deadline=None)
def test_min_k_plus_plus_is_the_plain_definition(
    tokens: list[tuple[float, float, float]], percent: int
) -> None:
    normal = [(p - mean) / max(std, 1e-6) for p, mean, std in tokens]
    want = -mean_of_lowest(normal, int(percent / 100 * len(tokens)))
    p, mean, std = map(list, zip(*tokens, strict=True))
    assert min_k_plus_plus(scored(p, mean, std), percent) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_min_k_plus_plus_picks_tokens_by_their_normalized_value() -> None:
    # The lowest log-probability (-9) stands where the model expects as much; -2 is the odd one.
    got = min_k_plus_plus(scored([-9.0, -2.0], [-9.0, -0.5], [3.0, 0.5]), 50)
    assert got == pytest.approx(3.0)


def test_a_certain_model_has_no_spread_and_a_finite_score() -> None:
    text = scored([-1e-9] * 20, [0.0] * 20, [0.0] * 20)
    assert min_k_plus_plus(text, 40) == pytest.approx(1e-9 / 1e-6)
    small = scored([-1e-3] * 20, [0.0] * 20, [2e-3] * 20)
    assert min_k_plus_plus(small, 40) == pytest.approx(0.5)  # a real spread is left alone


@given(
    logprobs=st.lists(st.floats(-20, -0.1), min_size=20, max_size=40),
    gain=st.floats(1.01, 3),
    text=st.text(min_size=1, max_size=40),
)
@settings(deadline=None)
def test_lower_looks_more_like_a_member(logprobs: list[float], gain: float, text: str) -> None:
    seen = score_text(scored([value / gain for value in logprobs]), text)
    unseen = score_text(scored(logprobs), text)
    for attack, value in seen.items():
        assert value < unseen[attack], attack


def test_every_attack_of_one_text_by_hand() -> None:
    logprobs = [-float(n) for n in range(1, 21)]
    scores = score_text(scored(logprobs), "Gate Ä", scored([-3.0, -5.0]))
    size = len(zlib.compress("Gate Ä".encode()))
    assert scores["PPL"] == pytest.approx(10.5)  # a mean loss, not its exponential
    assert scores["PPL/zlib"] == pytest.approx(10.5 / size)
    assert scores["PPL/lower"] == pytest.approx(10.5 / 4)
    for percent in (5, 10, 20, 30, 40, 50, 60):
        k = percent * 20 // 100
        assert scores[f"Min-{percent}%"] == pytest.approx(20 - (k - 1) / 2)
        assert scores[f"Min-{percent}%++"] == pytest.approx(19 - (k - 1) / 2)
    assert len(scores) == 3 + 2 * 7


def test_without_a_second_pass_there_is_no_ppl_lower() -> None:
    assert "PPL/lower" not in score_text(scored([-1.0] * 20), "text")


@given(text=st.text(st.characters(codec="utf-8"), max_size=80))
@settings(deadline=None)
def test_zlib_counts_the_bytes_of_the_text_itself(text: str) -> None:
    scores = score_text(scored([-2.0] * 20), text)
    assert scores["PPL/zlib"] * len(zlib.compress(text.encode())) == pytest.approx(2.0)


def test_a_lone_surrogate_has_a_size_too() -> None:
    assert score_text(scored([-2.0] * 20), "a\ud800b")["PPL/zlib"] > 0


@pytest.mark.parametrize("n", range(1, 21))
def test_a_text_gets_the_attacks_that_it_is_long_enough_for(n: int) -> None:
    fitting = {f"Min-{k}%{end}" for k in K_PERCENTS for end in ("", "++") if int(k / 100 * n) >= 1}
    found = score_text(scored([-1.0] * n), "text")
    assert set(found) == {"PPL", "PPL/zlib"} | fitting
    assert set(found) == {name for name, need in ATTACKS.items() if need <= n}


def test_a_text_of_no_tokens_has_no_score() -> None:
    with pytest.raises(MetricError, match="t/0: PPL, PPL/zlib is not finite"):
        score_text(scored([]), "text")


def test_twenty_tokens_are_enough() -> None:
    assert score_text(scored([-1.0] * 20), "text")["Min-5%"] == 1.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["logprobs", "mean", "std"])
@pytest.mark.parametrize("at", [0, 7, 19])
def test_a_figure_that_is_not_finite_raises_wherever_it_stands(
    value: float, part: str, at: int
) -> None:
    # Sorting puts NaN last: an average over the lowest would quietly leave it out.
    parts = {"logprobs": [-2.0] * 20, "mean": [-1.0] * 20, "std": [1.0] * 20}
    parts[part][at] = value
    with pytest.raises(MetricError, match="finite"):
        score_text(scored(**parts), "text")


@pytest.mark.parametrize("logprobs", [[math.nan], [-math.inf], [-1.0, -math.inf], [0.0], []])
def test_a_second_pass_that_is_not_finite_raises(logprobs: list[float]) -> None:
    # A loss of infinity in the denominator would be a PPL/lower of 0: a perfect member.
    with pytest.raises(MetricError, match="finite"):
        score_text(scored([-1.0] * 20), "text", scored(logprobs))


def test_that_error_names_the_text() -> None:
    with pytest.raises(MetricError, match="t/0"):
        score_text(scored([math.nan] * 20), "text")


def test_a_mean_of_another_length_raises() -> None:
    text = Scored("t/0", array([-2.0] * 20), array([-1.0]), array([1.0]))
    with pytest.raises(MetricError):
        score_text(text, "text")


@given(value=st.integers(0, 1000), reference=st.integers(1, 1000))
@settings(deadline=None)
def test_privleak_is_the_relative_distance_in_percent(value: int, reference: int) -> None:
    want = (Fraction(value, 1000) - Fraction(reference, 1000)) / Fraction(reference, 1000) * 100
    assert privleak(value / 1000, reference / 1000) == pytest.approx(float(want), abs=1e-9)


def test_privleak_by_hand() -> None:
    assert privleak(0.0, 0.4772) == -100.0  # the forget set is told apart: it leaks
    assert privleak(0.4772, 0.4772) == 0.0
    assert privleak(1.0, 0.5) == 100.0  # over-unlearned
    assert privleak(0.0009, 0.4772) == pytest.approx(-99.8114, abs=1e-4)  # MUSE's News target


@pytest.mark.parametrize("reference", [0.0, -0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_reference_that_is_no_auc_raises(reference: float) -> None:
    with pytest.raises(MetricError, match="gives no PrivLeak"):
        privleak(0.5, reference)


def test_privleak_of_nan_raises() -> None:
    with pytest.raises(MetricError):
        privleak(math.nan, 0.5)


def column(*values: float) -> list[dict[str, float]]:
    return [{"PPL": value, "Min-40%": 10 - value} for value in values]


def test_without_a_reference_there_is_an_auc_and_no_privleak() -> None:
    summary = summarize(column(1, 2, 3), column(0, 2.5, 2), "PPL", None, 0)
    assert summary.privleak is None
    # Non-member below member: (1: 0), (2: 0, tie 2), (3: all) = 1 + 1.5 + 3 of 9.
    assert summary.auc.value == pytest.approx(5.5 / 9)
    assert summary.attacks["PPL"] == summary.auc
    assert summary.attacks["Min-40%"].value == pytest.approx(3.5 / 9)


def test_members_that_are_recognised_have_auc_0_and_privleak_minus_100() -> None:
    summary = summarize(column(1, 2), column(3, 4), "PPL", ReferenceScores(0.5), 0)
    assert summary.auc.value == 0.0
    assert summary.privleak is not None
    assert summary.privleak.value == -100.0
    most = 1 - 0.025 ** (1 / 2)  # of two texts a side
    assert summary.auc.ci == pytest.approx((0.0, most))
    assert summary.privleak.ci == pytest.approx((-100.0, 200 * most - 100))


def test_a_stated_reference_moves_and_stretches_the_aucs_interval() -> None:
    members, others = column(1, 2, 3, 4, 9), column(0, 2.5, 2, 5, 6)
    summary = summarize(members, others, "PPL", ReferenceScores(0.25), 3)
    auc, leak = summary.auc, summary.privleak
    assert leak is not None
    assert leak.value == pytest.approx((auc.value - 0.25) / 0.25 * 100)
    assert auc.ci is not None
    assert leak.ci == pytest.approx([(end - 0.25) / 0.25 * 100 for end in auc.ci])
    assert auc.stderr is not None
    assert leak.stderr == pytest.approx(400 * auc.stderr)


def test_a_run_reference_adds_its_own_uncertainty_where_texts_differ() -> None:
    generator = np.random.default_rng(5)
    draw = [generator.normal(size=30).tolist() for _ in range(4)]
    members, others = column(*draw[0]), column(*draw[1])
    wins = [low > high for low in draw[2] for high in draw[3]]
    auc = sum(wins) / len(wins)
    run = ReferenceScores(auc, tuple(draw[2]), tuple(draw[3]))
    with_run = summarize(members, others, "PPL", run, 0).privleak
    stated = summarize(members, others, "PPL", ReferenceScores(auc), 0).privleak
    assert with_run is not None
    assert stated is not None
    assert with_run.value == pytest.approx(stated.value)
    assert with_run.stderr is not None
    assert stated.stderr is not None
    assert with_run.stderr > 1.15 * stated.stderr


def test_the_reference_measured_against_itself_is_exactly_0() -> None:
    values, others = (1.0, 4.0, 2.0, 8.0, 5.0), (3.0, 2.5, 7.0, 1.5, 9.0)
    auc = sum(low > high for low in values for high in others) / 25
    run = ReferenceScores(auc, values, others)
    leak = summarize(column(*values), column(*others), "PPL", run, 0).privleak
    assert leak is not None
    assert leak.value == pytest.approx(0.0, abs=1e-9)
    assert leak.ci in ((0.0, 0.0), None)


def test_a_reference_auc_of_0_raises() -> None:
    with pytest.raises(MetricError, match="gives no PrivLeak"):
        summarize(column(1, 2), column(3, 4), "PPL", ReferenceScores(0.0), 0)


def test_one_text_in_each_group_gives_an_auc_without_interval() -> None:
    summary = summarize(column(2), column(1), "PPL", ReferenceScores(0.5), 0)
    assert (summary.auc.value, summary.auc.stderr, summary.auc.ci) == (1.0, None, None)
    assert summary.privleak is not None
    assert (summary.privleak.value, summary.privleak.ci) == (100.0, None)


def test_the_seed_fixes_the_interval() -> None:
    members, others = column(*range(20)), column(*range(5, 25))
    first = summarize(members, others, "PPL", None, 1)
    assert first == summarize(members, others, "PPL", None, 1)
    assert first.auc.ci != summarize(members, others, "PPL", None, 2).auc.ci


@pytest.mark.parametrize(("members", "others"), [([], column(1)), (column(1), []), ([], [])])
def test_an_empty_group_raises(
    members: list[dict[str, float]], others: list[dict[str, float]]
) -> None:
    with pytest.raises(MetricError, match="both groups"):
        summarize(members, others, "PPL", None, 0)


def test_an_unknown_attack_raises_and_names_those_there_are() -> None:
    with pytest.raises(MetricError, match=r"unknown attack 'Min-41%'.*PPL, Min-40%"):
        summarize(column(1), column(2), "Min-41%", None, 0)


@pytest.mark.parametrize("where", ["member", "nonmember"])
def test_a_text_that_lacks_an_attack_raises(where: str) -> None:
    members, others = column(1, 2), column(3, 4)
    del (members if where == "member" else others)[1]["Min-40%"]
    with pytest.raises(MetricError, match="missing in some texts: Min-40%"):
        summarize(members, others, "PPL", None, 0)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_score_that_is_not_finite_raises(value: float) -> None:
    with pytest.raises(MetricError, match="NaN or infinite"):
        summarize(column(1, value), column(3, 4), "PPL", None, 0)
