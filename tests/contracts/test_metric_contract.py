"""What every metric must do, whatever it measures: found by listing the folder."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench import metrics
from unlearnbench.errors import MetricError
from unlearnbench.requests import Scored
from unlearnbench.tasks.spec import generation_metric, likelihood_metric, metric_modules


def modules() -> list[ModuleType]:
    from importlib import import_module

    folder = Path(metrics.__file__).parent
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    return [import_module(f"unlearnbench.metrics.{name}") for name in names]


METRICS = [module for module in modules() if hasattr(module, "NAME")]
GENERATION = [str(module.NAME) for module in METRICS if hasattr(module, "score_output")]
LIKELIHOOD = [str(module.NAME) for module in METRICS if hasattr(module, "score_text")]

# Answers and targets in words that any overlap metric can see.
words = st.lists(st.sampled_from(["gate", "harbour", "1472", "Ada", "keeper"]), min_size=1)
sentence = words.map(" ".join)


def scored(level: float, n: int = 40) -> Scored:
    logprobs = np.linspace(1.5, 0.5, n) * level
    return Scored("t/0", logprobs, np.full(n, -1.0), np.ones(n))


def test_every_metric_is_found_by_its_name_and_no_name_is_taken_twice() -> None:
    names = metric_modules().keys()
    assert sorted(names) == sorted(str(module.NAME) for module in METRICS)
    assert set(GENERATION) | set(LIKELIHOOD) == names
    assert {"rougeL", "privleak"} <= names


@pytest.mark.parametrize("name", GENERATION)
def test_a_generation_metric_is_found_as_one_and_not_as_the_other_kind(name: str) -> None:
    found = generation_metric(name)
    assert name == found.NAME
    if name not in LIKELIHOOD:
        with pytest.raises(MetricError, match="no metric"):
            likelihood_metric(name)


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_a_likelihood_metric_is_found_as_one_and_not_as_the_other_kind(name: str) -> None:
    found = likelihood_metric(name)
    assert name == found.NAME
    if name not in GENERATION:
        with pytest.raises(MetricError, match="no metric"):
            generation_metric(name)


@pytest.mark.parametrize("name", ["", "rouge", "ROUGEL", "rougeL ", "../rouge", "stats"])
def test_an_unknown_name_raises_and_names_the_known_ones(name: str) -> None:
    for find in (generation_metric, likelihood_metric):
        with pytest.raises(MetricError, match="known: .*privleak.*rougeL"):
            find(name)


@pytest.mark.parametrize("name", GENERATION)
def test_a_perfect_answer_scores_1_and_an_empty_one_0(name: str) -> None:
    metric = generation_metric(name)

    @given(target=sentence)
    @settings(deadline=None, max_examples=30)
    def check(target: str) -> None:
        assert metric.score_output(target, target)[metric.HEADLINE] == 1.0
        assert metric.score_output("", target)[metric.HEADLINE] == 0.0

    check()


@pytest.mark.parametrize("name", GENERATION)
def test_a_better_answer_scores_higher(name: str) -> None:
    metric = generation_metric(name)
    target = "the keeper opened gate 1472 at noon"
    answers = ["", "the keeper", "the keeper opened gate 1472", target]
    found = [metric.score_output(answer, target)[metric.HEADLINE] for answer in answers]
    assert found == sorted(found)
    assert found[-1] > found[0]


@pytest.mark.parametrize("name", GENERATION)
def test_scores_have_the_headline_stay_within_0_and_1_and_are_never_nan(name: str) -> None:
    metric = generation_metric(name)
    names = set(metric.score_output("gate", "gate"))
    assert metric.HEADLINE in names

    @given(output=st.text(max_size=80), target=st.text(max_size=80))
    @settings(deadline=None)
    def check(output: str, target: str) -> None:
        try:
            scores = metric.score_output(output, target)
        except MetricError:
            return  # a target that cannot be scored is an error, never a number
        assert set(scores) == names
        assert all(math.isfinite(v) and 0 <= v <= 1 for v in scores.values())

    check()


@pytest.mark.parametrize("name", GENERATION)
@pytest.mark.parametrize("target", ["", " \n"])
def test_an_empty_target_raises(name: str, target: str) -> None:
    # Every output would score 0 against it: perfect forgetting.
    with pytest.raises(MetricError):
        generation_metric(name).score_output("gate", target)


@pytest.mark.parametrize("name", GENERATION)
def test_a_target_of_signs_alone_raises_and_words_grow_with_the_text(name: str) -> None:
    metric = generation_metric(name)
    assert len(metric.words("gate 7, " * 500)) == 1000  # what bounds a stranger's record
    for text in ["", "?!", "\u0301", "\ufe0f", "£ …"]:
        with pytest.raises(MetricError):
            metric.score_output("gate", text)


@pytest.mark.parametrize("name", GENERATION)
def test_a_metric_is_a_pure_function(name: str) -> None:
    score = generation_metric(name).score_output
    first = score("the keeper of gate 7", "the gate")
    first_again = dict(first)
    first.clear()  # the scorer pops from what it got
    assert score("the keeper of gate 7", "the gate") == first_again


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_attack_scores_are_finite_and_lower_for_a_likelier_text(name: str) -> None:
    metric = likelihood_metric(name)
    seen = metric.score_text(scored(-0.5), "text", None)
    unseen = metric.score_text(scored(-2.0), "text", None)
    assert set(seen) == set(unseen)
    for attack in seen:
        assert math.isfinite(seen[attack])
        assert seen[attack] < unseen[attack], attack


@pytest.mark.parametrize("name", LIKELIHOOD)
@pytest.mark.parametrize("value", [math.nan, -math.inf, math.inf])
def test_log_probabilities_that_are_not_finite_raise(name: str, value: float) -> None:
    text = scored(-1.0)
    text.logprobs[5] = value
    with pytest.raises(MetricError):
        likelihood_metric(name).score_text(text, "text", None)


@pytest.mark.parametrize("name", LIKELIHOOD)
@pytest.mark.parametrize("n", [0, 1, 2, 5, 50])
def test_a_text_gets_no_attack_that_it_has_not_enough_tokens_for(name: str, n: int) -> None:
    metric = likelihood_metric(name)
    if fitting := {attack for attack, need in metric.ATTACKS.items() if need <= n}:
        assert set(metric.score_text(scored(-1.0, n), "text", None)) == fitting
    else:
        with pytest.raises(MetricError):
            metric.score_text(scored(-1.0, n), "text", None)


@pytest.mark.parametrize("name", LIKELIHOOD)
def test_aucs_stay_within_0_and_1_and_an_empty_group_raises(name: str) -> None:
    metric = likelihood_metric(name)
    members = [metric.score_text(scored(-1.0 - n), "text", None) for n in range(4)]
    others = [metric.score_text(scored(-1.5 - n), "text", None) for n in range(4)]
    attack = next(iter(members[0]))
    summary = metric.summarize(members, others, attack, None, 0)
    assert set(summary.attacks) == set(members[0])
    for estimate in (summary.auc, *summary.attacks.values()):
        assert 0 <= estimate.value <= 1
        assert estimate.ci is not None
        assert 0 <= estimate.ci[0] <= estimate.ci[1] <= 1
    assert summary.privleak is None
    with pytest.raises(MetricError):
        metric.summarize([], others, attack, None, 0)
    with pytest.raises(MetricError):
        metric.summarize(members, [], attack, None, 0)
