"""Conditions that change what a model is asked: which tasks they are put to, and what is kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy, load_at
from unlearnbench import conditions, evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.asking import is_question, put, question_end, question_start
from unlearnbench.errors import OptionError, PrecisionError, ResultError
from unlearnbench.models.hf import HFModel
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.requests import Generate
from unlearnbench.results import AskedAs, GenerationRecord
from unlearnbench.runs.folder import RunFolder, run_path
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, TaskSamples, load_samples
from unlearnbench.tasks.spec import Sample, Turn

TASKS = "toy_knowmem_f,toy_verbmem,toy_privleak"


def toy_task(toy: Toy, name: str = "toy_knowmem_f") -> TaskSamples:
    return load_samples(load_registry([toy.tasks]).tasks[name], DataOptions(toy.data))


def folder(toy: Toy, result: Any) -> RunFolder:
    return RunFolder(run_path(toy.out, result.checkpoint, result.condition.name))


def records_of(toy: Toy, result: Any, task: str = "toy_knowmem_f") -> list[GenerationRecord]:
    found = folder(toy, result).read_records(task, result.tasks[task].records_sha256)
    return [record for record in found if isinstance(record, GenerationRecord)]


def test_a_prompt_that_is_changed_is_what_the_model_answers_to(tiny: Path, toy: Toy) -> None:
    none, prefix = evaluate(str(tiny), TASKS, "none,prefix", **toy.options)
    assert (prefix.condition.name, prefix.condition.kind) == ("prefix-1", "asked")
    assert prefix.condition.options.further == {"opening": "Sure, here is the answer:"}
    plain = load_at(open_checkpoint(str(tiny), LoadOptions()), "none")
    before = records_of(toy, none)
    assert all(record.asked is None for record in before)
    for record, own in zip(records_of(toy, prefix), before, strict=True):
        put = f"{own.prompt}Sure, here is the answer: "
        (answer,) = plain.generate([Generate("x", put, 8, ("\n\n", "Question:"))])
        assert (record.prompt, record.target) == (own.prompt, own.target)
        assert record.asked == AskedAs(prompt=put)
        assert record.output == answer.text
    assert [r.output for r in records_of(toy, prefix)] != [r.output for r in before]


def test_other_tasks_are_asked_as_they_are_and_make_no_row(
    tiny: Path, toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench")
    none, prefix = evaluate(str(tiny), TASKS, "none,prefix", **toy.options)
    assert "prefix-1 is not put to toy_verbmem, toy_privleak, asked as without it" in caplog.text
    for name in ("toy_verbmem", "toy_privleak"):
        same = {"unchanged": None, "environment": None, "drafts": None}
        assert prefix.tasks[name].unchanged
        assert prefix.tasks[name].model_copy(update=same) == none.tasks[name].model_copy(
            update=same
        )
    assert prefix.tasks["toy_knowmem_f"].unchanged is None
    runs = [folder(toy, none).path.parent]
    rows = compare(open_comparison(runs, runs[0], runs[0]))
    assert {(row.task, row.precision) for row in rows} == {("toy_knowmem_f", "prefix-1")}
    assert evaluate(str(tiny), TASKS, "prefix", **toy.options) == [prefix]


@pytest.mark.parametrize("condition", ["prefix", "hints-1"])
def test_a_condition_that_fits_no_task_is_refused_before_a_model_is_loaded(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch, condition: str
) -> None:
    monkeypatch.setattr("unlearnbench.conditions.load.Prepared.load", None)
    with pytest.raises(PrecisionError, match="questions about what should be forgotten") as raised:
        evaluate(str(tiny), "toy_verbmem,toy_privleak", condition, **toy.options)
    assert "toy_verbmem, toy_privleak" in str(raised.value)


def test_an_interrupted_run_goes_on_with_the_same_answers(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = evaluate(str(tiny), "toy_knowmem_f", "hints-1", **toy.options)
    own, asked = HFModel.generate, list[str]()

    def stopping(model: HFModel, requests: Any, skip: Any = ()) -> Iterator[Any]:
        for number, answer in enumerate(own(model, requests, skip)):
            if number == 1 and not skip:
                raise KeyboardInterrupt
            asked.append(answer.id)
            yield answer

    monkeypatch.setattr(HFModel, "generate", stopping)
    again = {**toy.options, "output": toy.out.parent / "again"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(tiny), "toy_knowmem_f", "hints-1", **again)
    with pytest.raises(ResultError, match="half a task"):  # of other hints
        evaluate(str(tiny), "toy_knowmem_f", "hints-1", **again, seed=1)
    (resumed,) = evaluate(str(tiny), "toy_knowmem_f", "hints-1", **again)
    assert len(asked) == 3
    assert resumed.tasks == whole.tasks


def test_a_finished_task_of_other_prompts_is_not_taken_over(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(str(tiny), "toy_knowmem_f", "prefix", **toy.options)
    monkeypatch.setattr("unlearnbench.conditions.prefix.open_answer", lambda p, _: p + "Well: ")
    with pytest.raises(ResultError, match="with another prompt of forget_qa/0"):
        evaluate(str(tiny), "toy_knowmem_f", "prefix", **toy.options)


def test_texts_of_what_was_asked_are_hidden_with_the_others() -> None:
    record = GenerationRecord(
        task="t",
        id="a/0",
        prompt="p",
        output="o",
        target="t",
        score=0.5,
        scores={},
        asked=AskedAs(prompt="the secret", rows=("a/1",)),
    )
    hidden = record.with_texts(lambda text: f"<{len(text)}>")
    assert hidden.asked == AskedAs(prompt="<10>", rows=("a/1",))
    assert (hidden.prompt, hidden.output) == ("<1>", "<1>")


def test_where_the_question_stands(toy: Toy) -> None:
    task = toy_task(toy)
    sample = task.samples[1]
    end = question_end(task.spec, sample)
    assert sample.text[end:] == "\nAnswer: "
    start = question_start(task.spec, sample, task.splits["forget_qa"].rows[1])
    assert sample.text[start:end] == "Question: Which gate is 1?"
    chat = Sample(sample.id, sample.split, f"<|user|>{sample.text.strip()}<|end|>\n<|model|>\n")
    assert chat.text[question_end(task.spec, chat) :] == "\nAnswer:<|end|>\n<|model|>\n"
    with pytest.raises(PrecisionError, match="the question is not found in its prompt"):
        question_end(task.spec, Sample("forget_qa/1", "forget_qa", "nothing of it"))
    assert is_question(task.spec)
    assert not is_question(toy_task(toy, "toy_verbmem").spec)
    assert not is_question(toy_task(toy, "toy_privleak").spec)
    retain = task.spec.model_copy(update={"want": "high"})
    assert not is_question(retain)


def test_a_condition_of_prompts_needs_a_task_of_ours(toy: Toy) -> None:
    with pytest.raises(PrecisionError, match="all are of lm-eval"):
        put(conditions.find_condition("prefix"), [])


def test_a_model_object_has_no_such_condition(toy: Toy) -> None:
    from unlearnbench import ScriptedModel

    with pytest.raises(OptionError, match="leave conditions out"):
        evaluate(ScriptedModel(), "toy_knowmem_f", "prefix", **toy.options)


@pytest.mark.parametrize("template", ["", "<|system|>\nBe brief.", "[INST] "])
def test_a_question_ends_in_the_users_turn_where_the_task_begins_the_models(template: str) -> None:
    """Under a template the model's own turn begins behind a line's end, as the task's tail does."""
    spec = load_registry().tasks["rwku_forget_level1"]
    said = "Please complete the blank in the following question.\nQuestion: Who is ___?\n"
    turns = (Turn("user", said), Turn("assistant", "Answer:"))
    plain = Sample("test/0", "test", f"{said}Answer:", "x", turns=turns)
    assert plain.text[: question_end(spec, plain)].endswith("Who is ___?")
    chat = replace(plain, text=f"{template}{said}<|end|>\n<|assistant|>\n\nAnswer:")
    at = question_end(spec, chat)
    assert chat.text[:at].endswith("Who is ___?")
    assert chat.text[at:] == "\n<|end|>\n<|assistant|>\n\nAnswer:"
