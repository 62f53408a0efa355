"""Choices by log-probability: which is the model's, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unlearnbench.errors import DataError, MetricError
from unlearnbench.requests import Score, Scored
from unlearnbench.results import Settings
from unlearnbench.tasks.kinds.choice import TASK, ChoiceTask
from unlearnbench.tasks.spec import Sample, SplitRows

ROW: dict[str, Any] = {"q": "Which?", "choices": ["a long one", "short", "other"], "answer": 1}


FILE: dict[str, Any] = {
    "task": "toy_choice",
    "description": "Toy.",
    "dataset_path": "toy/choices",
    "dataset_name": "all",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{q}}",
    "doc_to_target": "{{answer}}",
    "target_is": "index",
    "choices": ["choices"],
    "metric": "accuracy",
    "want": "high",
    "splits": {"test": {"rows": 1}},
    "metadata": {"version": 1.0},
}


def spec(**changes: Any) -> ChoiceTask:
    return TASK.model_validate({**FILE, **changes})


def samples(task: ChoiceTask, row: dict[str, Any]) -> list[Sample]:
    return task.make_samples({"test": SplitRows("test", (row,), "local", "0" * 64)}, None)


def record(task: ChoiceTask, sample: Sample, *values: list[float]) -> Any:
    answers = [
        Scored(str(n), np.array(v), np.zeros(len(v)), np.ones(len(v))) for n, v in enumerate(values)
    ]
    return task.record(sample, answers)


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, ROW),
        ({"target_is": "text"}, {**ROW, "answer": "short"}),
        (
            {"choices": ["one", "two"]},
            {"q": "Which?", "one": ["a long one", "short"], "two": "other", "answer": 1},
        ),
    ],
)
def test_the_right_choice_comes_first(changes: dict[str, Any], row: dict[str, Any]) -> None:
    task = spec(**changes)
    (sample,) = samples(task, row)
    assert sample.answers == ("short", "a long one", "other")
    (each,) = task.requests(sample, Settings.model_construct())
    assert each[0] == Score("toy_choice:test/0:0", " short", "Which?")
    assert len(each) == 3


def test_labels_stand_for_choices() -> None:
    task = spec(labels=["A", "B", "C"], doc_to_text="{{q}} B. {{choices[1]}}")
    (sample,) = samples(task, ROW)
    assert (sample.text, sample.answers) == ("Which? B. short", ("B", "A", "C"))


def test_the_likeliest_by_the_sum_and_by_the_character() -> None:
    (sample,) = samples(spec(), ROW)
    found = record(spec(), sample, [-2.0, -2.0], [-4.5], [-9.0])
    assert (found.score, found.scores["accuracy_normalised"]) == (1.0, 0.0)
    odds = np.exp([-4.0, -4.5, -9.0])
    assert found.scores["probability"] == pytest.approx(odds[0] / odds.sum())
    assert record(spec(), sample, [-4.0], [-3.0], [-9.0]).score == 0.0
    assert record(spec(), sample, [-4.0], [-4.0], [-9.0]).score == 0.5, "no sign of forgetting"
    assert record(spec(), sample, [-4.0], [-4.0], [-4.0]).score == 1 / 3
    assert record(spec(), sample, [-4.0], [-3.0], [-3.0]).score == 0.0
    tied = record(spec(metric="accuracy_normalised"), sample, [-5.0], [-10.0], [-9.0])
    assert tied.score == 0.5, "5 and 10 characters"
    other = record(spec(metric="accuracy_normalised"), sample, [-4.0], [-4.5], [-9.0])
    assert (other.score, other.scores["accuracy"]) == (0.0, 1.0)
    assert set(other.scores) == spec(metric="accuracy_normalised").figures()


@pytest.mark.parametrize(
    ("changes", "row", "words"),
    [
        ({}, {"choices": ["one"], "answer": 0}, "test/0: 1 choice; a choice is among two or more"),
        ({}, {"choices": []}, "field 'choices' holds no text"),
        ({}, {"answer": 3}, "the right choice, '3', is none of its choices"),
        ({"target_is": "text"}, {"answer": "none"}, "the right choice, 'none', is none"),
        ({"labels": ["A", "B"]}, {}, "3 choices and 2 labels"),
        ({}, {"choices": ["b", "a", "b"]}, "test/0: a choice stands there twice"),
        ({"labels": ["A", "B", "A"]}, {}, "a choice stands there twice"),
        ({"labels": ["A", "B", "C"]}, {"choices": ["a", "b", "b"]}, "a choice stands there twice"),
    ],
)
def test_rows_that_offer_no_choice(
    changes: dict[str, Any], row: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        samples(spec(**changes), {**ROW, **row})


def test_records_give_their_figures_again_with_hashes_for_texts_too() -> None:
    for task in (spec(), spec(metric="accuracy_normalised")):
        (sample,) = samples(task, ROW)
        found = record(task, sample, [-4.0], [-4.5], [-9.0])
        for each in (found, found.with_texts(lambda text: f"sha256:{len(text):064x}")):
            earned = task.rescore(each)
            assert set(earned) == {task.metric, *task.figures()}
            assert all(stated == ours for stated, ours in earned.values())
        forged = task.rescore(found.model_copy(update={"score": 0.25}))
        assert forged[task.metric] == (0.25, found.score)
        for changes in ({"logprobs": [-1.0]}, {"characters": [1, 1, 1]}, {"more": 1}):
            with pytest.raises(MetricError):
                task.rescore(found.model_copy(update={"facts": {**found.facts, **changes}}))


def test_a_log_probability_that_is_not_finite_raises() -> None:
    (sample,) = samples(spec(), ROW)
    with pytest.raises(MetricError, match="not finite"):
        record(spec(), sample, [-np.inf], [-1.0], [-1.0])
