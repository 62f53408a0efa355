"""The claims of an early check against the figures of a whole comparison."""

from __future__ import annotations

import pytest

from tests.toy_runs import Bench, Skill, few_draws
from unlearnbench.recovery.claims import Anchors, Claim, Rule
from unlearnbench.recovery.compare import Comparison, open_comparison
from unlearnbench.recovery.policy import Policy
from unlearnbench.runs.entries import Entry

pytestmark = pytest.mark.slow
CONDITIONS = ("none", "rtn-int8", "rtn-int4", "relearn-20")
FIGURES = {"max_excess": "excess", "max_privleak": "excess", "max_recovered": "recovered"}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    with few_draws():
        bench = Bench(tmp_path_factory.mktemp("claims"))
        skill = Skill.of
        knows, hides = skill(0.9, 0.9, 1.5), skill(0.1, 0.85, 0.3)
        bench.model("target", none=knows, int8=knows, int4=skill(0.8, 0.8, 1.2), relearn=knows)
        learnt = skill(0.3, 0.8, 0.5)
        bench.model("retrained", none=skill(0.15, 0.9, 0.1), relearn=learnt)
        much, half = skill(0.8, 0.8, 1.3), skill(0.5, 0.8, 0.9)
        bench.model("comes_back", none=hides, int8=hides, int4=half, relearn=much)
        bench.model("never_forgot", none=knows, int8=knows, int4=knows, relearn=knows)
        bench.model("leaks", none=skill(0.6, 0.7, 1.2), int8=half, int4=knows, relearn=much)
        names = ("comes_back", "never_forgot", "leaks")
        runs = [next(bench.out.glob(f"{name}-*")) for name in names]
        target, retrained = (next(bench.out.glob(f"{name}-*")) for name in ("target", "retrained"))
        return open_comparison(runs, target, retrained)


def above(comparison: Comparison, entry: Entry, claim: Claim) -> float:
    """How far the mean of all samples, and of all pairs of texts, is above a claim's limit."""
    ends = {
        "unlearned": entry,
        "target": comparison.target,
        "retrained": comparison.retrained,
    }
    means = {}
    for name in claim.terms:
        scores = comparison.scores(ends[name.role].at(name.condition), name.task)
        means[name] = scores.mean / (1 if name.task == "made_privleak" else 100)
    return sum(weight * means[name] for name, weight in claim.terms.items()) - claim.limit


def rules(comparison: Comparison, most: float) -> list[Rule]:
    policy = Policy(
        tasks=("made_*",),
        precisions=CONDITIONS,
        max_recovered=most / 100,
        max_excess=most,
        max_privleak=most,
        min_utility=most / 100,
    )
    return Anchors(comparison, policy).rules()


def test_figures_are_those_of_a_whole_comparison(found: Comparison) -> None:
    """Every figure is linear in what it is held against, and is that at which nothing is left."""
    seen = []
    with few_draws():
        for entry in found.entries:
            for rule in rules(found, 30):
                row = found.row(entry, rule.task, rule.condition)
                kind = "utility" if rule.kind == "min_utility" else FIGURES[rule.kind]
                value = getattr(row, kind)
                if value is None:
                    assert kind == "recovered"
                    continue
                assert rule.figure is not None
                at = [above(found, entry, rule.figure(x)) for x in (0.0, 1.0)]
                assert at[0] / (at[0] - at[1]) == pytest.approx(value, abs=1e-9), rule
                seen.append((rule.kind, rule.condition))
    assert {kind for kind, _ in seen} == {*FIGURES, "min_utility"}
    assert {condition for kind, condition in seen if kind == "max_recovered"} == {*CONDITIONS[1:]}


@pytest.mark.parametrize("most", [5.3, 29.3, 69.3])
def test_what_is_shown_is_what_the_points_of_all_samples_say(
    found: Comparison, most: float
) -> None:
    outcomes = []
    with few_draws():
        for entry in found.entries:
            for rule in rules(found, most):
                row = found.row(entry, rule.task, rule.condition)
                holds = {
                    "max_excess": row.excess < most,
                    "max_privleak": abs(row.excess) < most,
                    "min_utility": row.utility is not None and row.utility > most / 100,
                    "max_recovered": row.recovered is not None and row.recovered < most / 100,
                }[rule.kind]
                shown = all(above(found, entry, claim) > 0 for claim in rule.holds)
                broken = [
                    all(above(found, entry, claim) > 0 for claim in way) for way in rule.broken
                ]
                assert shown == holds, (entry.name, rule, row)
                assert any(broken) != holds, (entry.name, rule, row)
                outcomes.append((rule.kind, holds))
    if most == 29.3:
        assert {o for o in outcomes if o[0] != "min_utility"} == {
            (kind, holds) for kind in FIGURES for holds in (True, False)
        }
