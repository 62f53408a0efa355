from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from unlearnbench.errors import MetricError
from unlearnbench.metrics.truth import (
    Mean,
    forget_quality,
    harmonic_mean,
    probability,
    probability_normalised,
    truth_ratio,
)


@pytest.mark.parametrize(("mean", "false"), [("geometric", 1 / 4), ("arithmetic", 17 / 64)])
def test_the_truth_ratio_of_three_probabilities(mean: Mean, false: float) -> None:
    true = Fraction(1, 2)
    wrong = [Fraction(1, 2), Fraction(1, 8)]
    losses = [-math.log(p) for p in wrong]
    found = truth_ratio(-math.log(true), losses, mean)
    want = math.sqrt(wrong[0] * wrong[1]) if mean == "geometric" else sum(wrong) / 2
    assert found.ratio == pytest.approx(float(want / true), rel=1e-9)
    assert found.true_better == pytest.approx(float(1 - want / true), rel=1e-9)
    assert found.share == pytest.approx(float(true / (true + want)), rel=1e-9)


def test_it_is_closer_to_one_where_less_tells_them_apart() -> None:
    near, far = truth_ratio(1.0, [1.1, 1.0]), truth_ratio(5.0, [0.1])
    assert far.ratio > 1
    assert near.closer_to_one > far.closer_to_one > 0
    assert far.true_better == 0
    assert truth_ratio(2.0, [2.0, 2.0]).closer_to_one == pytest.approx(1)


def test_an_answer_among_wrong_ones() -> None:
    losses = [-math.log(p) for p in (0.2, 0.1, 0.1)]
    assert probability_normalised(losses[0], losses[1:]) == pytest.approx(0.5)
    assert probability_normalised(900.0, [900.0]) == 0


@pytest.mark.parametrize("loss", [math.nan, math.inf, -1e-3])
def test_a_loss_that_none_can_be_raises(loss: float) -> None:
    with pytest.raises(MetricError, match="is that of no text"):
        probability(loss)
    with pytest.raises(MetricError, match="is that of no text"):
        truth_ratio(1.0, [1.0, loss])


def test_a_truth_ratio_without_false_answers_raises() -> None:
    with pytest.raises(MetricError, match="needs false answers"):
        truth_ratio(1.0, [])


def steps(ours: list[float], theirs: list[float]) -> float:
    """D, from the two step functions at every value."""
    at = np.array(sorted({*ours, *theirs}))
    both = [np.searchsorted(np.sort(values), at, side="right") for values in (ours, theirs)]
    return float(np.abs(both[0] / len(ours) - both[1] / len(theirs)).max())


def test_forget_quality_is_a_two_sided_test() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = list(rng.uniform(0, 1, 40)), list(rng.uniform(0, 2, 40))
    found = forget_quality(ours, theirs)
    assert found.statistic == pytest.approx(steps(ours, theirs))
    assert found.n == 40
    assert found.p == forget_quality(theirs, ours).p
    turned = forget_quality([1 / s for s in ours], [1 / s for s in theirs])
    assert turned.p == pytest.approx(found.p), "a monotone map moves nothing"
    assert forget_quality(ours, ours).p == 1


@pytest.mark.parametrize(("n", "p"), [(40, 1.86e-23), (200, 1.943e-119), (400, 1.0636e-239)])
def test_a_collapsed_model_has_the_p_of_disjoint_rows(n: int, p: float) -> None:
    found = forget_quality([0.0] * n, [1.0 + i for i in range(n)])
    assert found.statistic == 1
    assert found.p == pytest.approx(p, rel=3e-4)
    assert found.log10_p == pytest.approx(math.log10(2 / math.comb(2 * n, n)), abs=1e-9)


def test_its_logarithm_stays_where_p_does_not() -> None:
    found = forget_quality([0.0] * 900, [1.0] * 900)
    assert (found.p, found.statistic) == (0, 1)
    assert found.log10_p == pytest.approx(math.log10(2) - math.log10(math.comb(1800, 900)))


@pytest.mark.parametrize("rows", [([], []), ([1.0], [1.0, 2.0]), ([1.0, 2.0], [math.nan, 1.0])])
def test_other_numbers_of_rows_are_refused(rows: tuple[list[float], list[float]]) -> None:
    with pytest.raises(MetricError, match="same rows|not finite"):
        forget_quality(*rows)


def test_harmonic_means() -> None:
    assert harmonic_mean([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic_mean([1.0, 0.0]) == 0, "one lost ability is not made good by others"
    for values in ([], [0.5, -0.1], [math.nan], [math.inf]):
        with pytest.raises(MetricError):
            harmonic_mean(values)
