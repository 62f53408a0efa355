"""N answers drawn to each question: each by its own draw, the best counted, all scores kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conditions.test_asking import records_of, toy_task
from tests.conftest import Toy, load_at, write_jsonl
from unlearnbench import evaluate
from unlearnbench.boards.verify_samples import rescored
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.errors import PrecisionError
from unlearnbench.metrics.rouge import score_output
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Generated, Sampling
from unlearnbench.results import GenerationRecord, Settings


def test_the_best_of_the_answers_counts_and_all_scores_are_kept(tiny: Path, toy: Toy) -> None:
    model = load_at(open_checkpoint(str(tiny), LoadOptions()), "none")
    asked: dict[str, list[Generate]] = {}
    for sample in toy_task(toy, "toy_verbmem").samples:
        names = [f"toy_verbmem:{sample.id}:{number}" for number in range(5)]
        asked[sample.id] = [Generate(n, sample.text, 16, (), Sampling(1.0, 0, 3)) for n in names]
    drawn = model.generate([request for each in asked.values() for request in each])
    texts = {answer.id: answer.text for answer in drawn}
    assert len({*texts.values()}) == 15
    # What is to be forgotten is what the third draw says.
    rows = [
        {"prompt": each[0].prompt, "gt": " ".join(re.findall("[a-z0-9]+", texts[each[2].id]))}
        for each in asked.values()
    ]
    write_jsonl(
        toy.data / "toy/set/verbmem/forget.jsonl", [r | {"gt": r["gt"] or "x"} for r in rows]
    )
    (result,) = evaluate(str(tiny), "toy_verbmem", "sample-5-seed3", **toy.options)
    further = {"answers": 5, "temperature": 1.0, "top_k": 0, "seed": 3}
    assert result.condition.options.further == further
    for record in records_of(toy, result, "toy_verbmem"):
        each = asked[record.id]
        scores = [score_output(texts[one.id], record.target)["rougeL"] for one in each]
        assert record.asked is not None
        assert record.asked.scores == pytest.approx(scores)
        assert record.score == max(scores)
        assert record.output == texts[each[scores.index(max(scores))].id]
    task = result.tasks["toy_verbmem"]
    assert task.leak is not None
    assert task.leak.draws == 5
    assert task.leak.best["5"] == pytest.approx(task.value)
    assert task.leak.best["1"] < task.leak.best["5"]


def test_resumed_by_draw(tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = evaluate(str(tiny), "toy_knowmem_f", "sample-3", **toy.options)
    own = HFModel.generate

    def stopping(model: HFModel, requests: Any, skip: Any = ()) -> Any:
        for number, answer in enumerate(own(model, requests, skip)):
            if number == 4 and not skip:
                raise KeyboardInterrupt
            yield answer

    monkeypatch.setattr(HFModel, "generate", stopping)
    again = {**toy.options, "output": toy.out.parent / "again"}
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(tiny), "toy_knowmem_f", "sample-3", **again)
    (resumed,) = evaluate(str(tiny), "toy_knowmem_f", "sample-3", **again)
    assert resumed.tasks == whole.tasks
    assert evaluate(str(tiny), "toy_knowmem_f", "sample-3", **again) == [resumed]


def test_a_drawn_text_may_hold_anything(toy: Toy) -> None:
    task, spec = toy_task(toy), find_condition("sample-4")
    from unlearnbench.conditions.sample import ask

    asking = ask(spec, task)
    settings = Settings(protocol="muse", dtype="fp32", device="cpu", seed=0, ppl_lower=False)
    (each,) = asking.requests(task.samples[0], settings)
    texts = ["", "\ud800\x00\u2028", "gate 0" * 3000, "gate 0"]
    answers = [Generated(r.id, text, 1) for r, text in zip(each, texts, strict=True)]
    record = asking.record(task.samples[0], answers)
    assert isinstance(record, GenerationRecord)
    assert record.asked is not None
    assert record.asked.scores is not None
    assert record.output == "gate 0"
    assert record.asked.scores == (0, 0, record.asked.scores[2], 1)


def test_a_score_that_is_not_the_best_does_not_verify(tiny: Path, toy: Toy) -> None:
    (result,) = evaluate(str(tiny), "toy_knowmem_f", "sample-2", **toy.options)
    record, spec = records_of(toy, result)[0], toy_task(toy).spec
    assert rescored(spec, [record], False)[0] == []
    assert record.asked is not None
    lying = record.asked.model_copy(update={"scores": (0.5, 0.99)})
    (said,) = rescored(spec, [record.model_copy(update={"asked": lying})], False)[0]
    assert "the best of the answers drawn is 0.99" in said


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("sample-16", "sample-16"),
        ("sample-16-t1.0-seed0", "sample-16"),
        ("sample-16-t0.70", "sample-16-t0.7"),
        ("sample-1-t2-seed07", "sample-1-t2-seed7"),
    ],
)
def test_one_name(typed: str, name: str) -> None:
    spec = find_condition(typed)
    assert spec.name == name
    assert find_condition(name) == spec


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sample-0", "1 to 1000"),
        ("sample-1001", "1 to 1000"),
        ("sample-4-t0", "a temperature above 0"),
        ("sample-4-t11", "10 at most"),
        ("sample-4-tnan", "unknown condition"),
        ("sample-04", "unknown condition"),
    ],
)
def test_numbers_out_of_bounds(name: str, said: str) -> None:
    with pytest.raises(PrecisionError, match=said):
        find_condition(name)
