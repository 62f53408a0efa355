"""Rules with equal error rates: the linear program against a grid, and what no rule can do."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unlearnbench.errors import MetricError
from unlearnbench.metrics.fairness import (
    WAYS,
    Votes,
    chances,
    compare_ways,
    decide,
    errors,
    fit,
    judge,
    majority,
    uniform,
)


def random_votes(seed: int, rows: int = 240, models: int = 3) -> Votes:
    """Models that know the label, less well for group 1, and agree among each other."""
    rng = np.random.default_rng(seed)
    groups, labels = rng.integers(0, 2, rows), (rng.random(rows) < 0.4).astype(int)
    right = 0.85 - 0.2 * groups
    shared = rng.random(rows) < 0.5
    votes = np.empty((rows, models), dtype=int)
    common = rng.random(rows)
    for model in range(models):
        drawn = np.where(shared, common, rng.random(rows))
        votes[:, model] = np.where(drawn < right, labels, 1 - labels)
    return Votes(tuple(f"test/{n}" for n in range(rows)), votes, groups, labels)


def rates(decided: Any, data: Votes) -> list[float]:
    """Of both labels, the difference between the groups."""
    return [decided[data.cell(0, y)].mean() - decided[data.cell(1, y)].mean() for y in (0, 1)]


@pytest.mark.parametrize("seed", range(4))
def test_one_model_is_corrected_as_a_search_over_a_grid_does(seed: int) -> None:
    """Both groups' rules that reach a point (FPR, TPR) follow from it; the best point is sought."""
    data = random_votes(seed, models=1)
    rule = fit(data, data.votes)
    p = chances(rule, data.votes, data.groups)
    assert np.abs(rates(p, data)).max() < 1e-9, "the constraints hold"
    base, steps = data.labels.mean(), np.linspace(0, 1, 201)
    fpr, tpr = np.meshgrid(steps, steps, indexing="ij")
    loss, possible = (1 - base) * fpr + base * (1 - tpr), np.ones_like(fpr, dtype=bool)
    for group in (0, 1):
        f, t = (data.votes[data.cell(group, y), 0].mean() for y in (0, 1))
        one = (fpr * (1 - t) - tpr * (1 - f)) / (f - t)  # q(1, group)
        none = (f * tpr - t * fpr) / (f - t)
        possible &= (np.minimum(one, none) > -1e-9) & (np.maximum(one, none) < 1 + 1e-9)
    best = loss[possible].min()
    assert errors(p, data.labels) <= best + 1e-9
    assert errors(p, data.labels) >= best - 2 / 200


@pytest.mark.parametrize("seed", range(4))
def test_all_votes_together_are_no_worse_than_any_other_rule_on_them(seed: int) -> None:
    data = random_votes(seed)
    agreed = majority(data.votes)[:, None]

    def loss(votes: Any) -> float:
        p = chances(fit(data, votes), votes, data.groups)
        assert np.abs(rates(p, data)).max() < 1e-9
        return errors(p, data.labels)

    whole, joined = loss(data.votes), loss(agreed)
    constant = min(data.labels.mean(), 1 - data.labels.mean())
    assert whole <= joined + 1e-9 <= constant + 2e-9
    assert all(whole <= loss(data.votes[:, [m]]) + 1e-9 for m in range(3))
    assert whole < constant - 0.05, "it is worth something"
    swapped = Votes(data.ids, data.votes, 1 - data.groups, data.labels)
    mirror = fit(swapped, data.votes[:, [0]])
    for (pattern, group), q in fit(data, data.votes[:, [0]]).items():
        assert mirror[pattern, 1 - group] == pytest.approx(q, abs=1e-9)


def test_a_perfect_model_is_left_alone_and_a_tie_is_the_first_models() -> None:
    data = random_votes(0)
    perfect = Votes(data.ids, data.labels[:, None], data.groups, data.labels)
    assert fit(perfect, perfect.votes) == {((v,), a): float(v) for v in (0, 1) for a in (0, 1)}
    for way in WAYS:
        assert (decide(way, perfect, perfect, 0) == data.labels).all()
    assert majority(np.array([[1, 0], [0, 1], [1, 1], [0, 0]])).tolist() == [1, 0, 1, 0]
    assert majority(np.array([[1, 0, 0], [0, 1, 1]])).tolist() == [0, 1]


def test_decisions_are_drawn_by_seed_and_row_alone() -> None:
    fitted, tested = random_votes(1).halves(0)
    turned = tested.take(np.arange(len(tested.ids))[::-1])
    for way in WAYS:
        found = decide(way, fitted, tested, 3)
        assert (decide(way, fitted, turned, 3)[::-1] == found).all()
        other = decide(way, fitted, tested, 4)
        assert (other == found).all() == (way == "majority")
    p = chances(fit(fitted, fitted.votes), tested.votes, tested.groups)
    drawn = np.mean([decide("ensemble", fitted, tested, s) for s in range(200)], axis=0)
    assert np.abs(drawn - p).max() < 0.15, "as often as the rule says"
    assert 0 <= uniform(0, "a") < 1
    assert uniform(0, "a") != uniform(0, "b")


def test_rules_are_fitted_on_other_rows_than_they_are_judged_on() -> None:
    data = random_votes(2, rows=400)
    fitted, tested = data.halves(5)
    assert not set(fitted.ids) & set(tested.ids)
    assert set(fitted.ids) | set(tested.ids) == set(data.ids)
    sizes = [abs(int(fitted.cell(a, y).sum() - tested.cell(a, y).sum())) for a, y in CELLS]
    assert max(sizes) <= 1
    found = compare_ways(data, 5)
    assert set(found) == set(WAYS)
    assert found["ensemble"].gap.value < found["majority"].gap.value
    for figures in found.values():
        assert figures.gap.ci is not None
        assert figures.gap.ci[0] <= figures.gap.value <= figures.gap.ci[1]


CELLS = [(a, y) for a in (0, 1) for y in (0, 1)]


def test_the_gap_and_its_interval_are_those_of_the_rates() -> None:
    labels, groups = np.array([0, 0, 1, 1] * 25), np.array([0, 1] * 50)
    decided = labels.copy()
    decided[np.flatnonzero((labels == 1) & (groups == 1))[:15]] = 0  # TPR 1 and 10 / 25
    data = Votes(tuple(map(str, range(100))), decided[:, None], groups, labels)
    found = judge(decided, data, 0)
    assert found.rates == {"tpr_0": 1.0, "tpr_1": 0.4, "fpr_0": 0.0, "fpr_1": 0.0}
    assert found.gap.value == pytest.approx(0.6)
    assert found.mean_gap == pytest.approx(0.3)
    assert found.accuracy.value == pytest.approx(0.85)
    assert found.gap.ci is not None
    from scipy.stats import beta

    # Clopper and Pearson at 97.5%: 25 of 25 and 10 of 25; MOVER of the two.
    low, high = beta.ppf(0.0125, 25, 1), beta.ppf(0.9875, 11, 15)
    assert found.gap.ci[0] == pytest.approx(0.6 - np.hypot(1 - low, high - 0.4), abs=0.02)
    assert found.gap.ci[1] < 1


@pytest.mark.parametrize("cell", CELLS)
def test_error_rates_of_no_rows_can_be_met_by_no_rule(cell: tuple[int, int]) -> None:
    data = random_votes(3)
    left = data.take(np.flatnonzero(~data.cell(*cell)))
    with pytest.raises(MetricError, match=f"group {cell[0]} has no row with label {cell[1]}"):
        fit(left, left.votes)
    with pytest.raises(MetricError, match=f"group {cell[0]} has 0 rows with label {cell[1]}"):
        compare_ways(left, 0)


def test_what_the_solver_cannot_meet_is_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    import scipy.optimize

    solve = scipy.optimize.linprog

    def impossible(cost: Any, **given: Any) -> Any:
        return solve(cost, **(given | {"b_eq": [2, 2]}))

    monkeypatch.setattr(scipy.optimize, "linprog", impossible)
    data = random_votes(0)
    with pytest.raises(MetricError, match="no rule has equal error rates in both groups"):
        fit(data, data.votes)
