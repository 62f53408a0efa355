"""Answers behind a question: what is asked, what a record holds, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.cli.test_main import call
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.errors import DataError, MetricError
from unlearnbench.requests import Score, Scored
from unlearnbench.results import RunResult, Settings
from unlearnbench.tasks.kinds.answers import TASK, AnswersTask
from unlearnbench.tasks.rows import DataOptions, load_samples
from unlearnbench.tasks.spec import Sample

FILE: dict[str, Any] = {
    "task": "toy_answers",
    "tag": ["toys"],
    "description": "Toy.",
    "dataset_path": "toy/qa",
    "dataset_name": "all",
    "output_type": "answer_loglikelihood",
    "test_split": "train",
    "doc_to_text": "Q: {{q}}",
    "doc_to_target": "{{a}}",
    "true_answer": "said",
    "false_answers": ["wrong"],
    "metric": "probability",
    "want": "low",
    "splits": {"train": {"rows": 2}},
    "metadata": {"version": 1.0},
}
ROWS = [
    {"q": "one?", "a": "right", "said": "so right", "wrong": ["bad", "worse"]},
    {"q": "two?", "a": "yes", "said": "oh yes", "wrong": ["no", "nay"]},
]
LOGPROBS = {
    "Q: one? right": [-0.1, -1.0, -0.2, -0.1],  # the last of each is the end token's
    "Q: one? so right": [-1.0, -2.0],
    "Q: one? bad": [-3.0],
    "Q: one? worse": [-2.0, -4.0],
    "Q: two? yes": [-0.1, -0.1, -4.0],
    "Q: two? oh yes": [-0.5],
    "Q: two? no": [-1.0],
    "Q: two? nay": [-2.0],
}


def spec(**changes: Any) -> AnswersTask:
    return TASK.model_validate({**FILE, **changes})


def write(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """What finds the toy's task and its rows."""
    (folder / "tasks").mkdir()
    content = {**FILE, "splits": {"train": {"rows": len(rows)}}, **changes}
    (folder / "tasks" / "toy_answers.yaml").write_text(json.dumps(content))
    path = folder / "data" / "toy" / "qa" / "all" / "train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = {"data_dir": folder / "data", "include_path": [folder / "tasks"]}
    return {**found, "output": folder / "out"}


def samples_of(result: RunResult, folder: Path) -> list[dict[str, Any]]:
    (path,) = folder.rglob("toy_answers.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_pass_gives_every_figure(tmp_path: Path) -> None:
    found = write(tmp_path, ROWS)
    (run,) = evaluate(ScriptedModel(logprobs=LOGPROBS), "toy_answers", **found)
    result, (first, second) = run.tasks["toy_answers"], samples_of(run, tmp_path / "out")
    assert first["facts"] == {
        "prompt": "Q: one?",
        "answer": "right",
        "loss": pytest.approx(1.4 / 4),
        "true_loss": 1.5,
        "false_losses": [3.0, 3.0],
        "tokens": 3,
        "matched": 2,
        "known_from": 2,
    }
    assert first["score"] == pytest.approx(math.exp(-0.35))
    ratio, p = math.exp(-3) / math.exp(-1.5), math.exp(-0.35)
    assert first["scores"] == {
        "probability_normalised": pytest.approx(p / (p + 2 * math.exp(-3))),
        "truth_ratio": pytest.approx(ratio),
        "truth_ratio_arithmetic": pytest.approx(ratio),
        "truth_better": pytest.approx(1 - ratio),
        "truth_share": pytest.approx(1 / (1 + ratio)),
        "extraction_strength": pytest.approx(1 / 3),
        "extraction_floor": 1.0,
        "exact_memorization": pytest.approx(2 / 3),
    }
    assert second["scores"]["extraction_strength"] == 1.0
    scores = [first["score"], second["score"]]
    assert result.value == pytest.approx(100 * sum(scores) / 2)
    assert result.scores["extraction_floor"] == 50.0
    assert (result.metric, result.n) == ("probability", 2)


def test_what_is_asked() -> None:
    task, settings = spec(), Settings.model_construct()
    splits = Sample("train/0", "train", "Q: one?", "right", ("right", "so", "bad"), " ")
    (each,) = task.requests(splits, settings)
    assert each == [
        Score("toy_answers:train/0:0", " right", "Q: one?", True),
        Score("toy_answers:train/0:1", " so", "Q: one?", True),
        Score("toy_answers:train/0:2", " bad", "Q: one?", True),
    ]
    (each,) = spec(score_end=False).requests(splits, settings)
    assert not any(isinstance(request, Score) and request.end for request in each)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"wrong": None}, "train/1: field 'wrong' holds no text or list of texts"),
        ({"wrong": []}, "train/1: field 'wrong' holds no text or list of texts"),
        ({"wrong": ["no", ""]}, "train/1: field 'wrong' holds no text or list of texts"),
        ({"wrong": ["no", 7]}, "train/1: field 'wrong' holds no text or list of texts"),
        ({"said": ""}, "train/1: field 'said' holds no text or list of texts"),
        ({"a": ""}, "train/1: the answer is empty"),
        ({"a": ["yes"]}, "field 'a' holds list, not text"),
        ({"wrong": ["\ud800"]}, "half of a surrogate pair"),
    ],
)
def test_a_row_without_its_answers_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    found = write(tmp_path, [ROWS[0], {**ROWS[1], **changes}])
    line = ["--model", str(tmp_path), "--tasks", "toy_answers", "--data-dir", found["data_dir"]]
    line += ["--include-path", found["include_path"][0], "--output", found["output"]]
    assert call(*map(str, line)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"false_answers": []}, "true_answer: it needs false_answers"),
        ({"false_answers": [], "true_answer": None, "metric": "truth_ratio"}, "metric: known here"),
        ({"metric": "rougeL"}, "metric: known here"),
        ({"splits": {"test": {"rows": 1}}}, "splits has no entry for train"),
    ],
)
def test_a_task_that_does_not_fit_together(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        spec(**changes)


def test_without_false_answers_there_is_no_truth_ratio(tmp_path: Path) -> None:
    found = write(tmp_path, ROWS, true_answer=None, false_answers=[])
    (run,) = evaluate(ScriptedModel(logprobs=LOGPROBS), "toy_answers", **found)
    tokens = {"extraction_strength", "extraction_floor", "exact_memorization"}
    assert set(run.tasks["toy_answers"].scores) == tokens
    assert "false_losses" not in samples_of(run, tmp_path / "out")[0]["facts"]


def test_records_give_their_figures_again_and_a_changed_one_shows(tmp_path: Path) -> None:
    found, task = write(tmp_path, ROWS), spec()
    samples = load_samples(task, DataOptions(found["data_dir"])).samples
    values = [LOGPROBS[f"Q: one? {text}"] for text in samples[0].answers]
    answers = [
        Scored(str(n), np.array(v), np.zeros(len(v)), np.ones(len(v)), np.array(v) > -0.7)
        for n, v in enumerate(values)
    ]
    record = task.record(samples[0], answers)
    earned = task.rescore(record)
    assert all(stated == ours for stated, ours in earned.values())
    assert set(earned) == {task.metric, *record.scores}
    changed = record.model_copy(update={"score": 0.0})
    assert task.rescore(changed)["probability"] == (0.0, record.score)
    for facts in ({"loss": -1.0}, {"loss": "1"}, {"known_from": 9}, {"more": 1}):
        with pytest.raises(MetricError):
            task.rescore(record.model_copy(update={"facts": {**record.facts, **facts}}))
    without = {key: record.facts[key] for key in record.facts if key != "false_losses"}
    for imported in (False, True):
        with pytest.raises(MetricError, match="the facts of train/0 give no probability_normal"):
            task.rescore(record.model_copy(update={"facts": without}), imported)
    less = {k: v for k, v in record.facts.items() if k not in ("tokens", "matched", "known_from")}
    partial = record.model_copy(update={"facts": less})
    assert task.rescore(partial, imported=True)["probability"] == (record.score, record.score)
    with pytest.raises(MetricError, match="the facts of train/0 give no exact_memorization"):
        task.rescore(partial)
    broken = [answers[0], *(Scored("n", a.logprobs * np.nan, a.mean, a.std) for a in answers[1:])]
    with pytest.raises(MetricError, match="not finite"):
        task.record(samples[0], broken)


def test_a_field_may_be_a_list_and_give_one_of_its_texts(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "a": ["right", "left"], "q": ["one?"]}]
    doc = {"doc_to_text": "Q: {{q|join(' ')}}", "doc_to_target": "{{a[0]}}"}
    found = write(tmp_path, rows, **doc)
    task = spec(**doc, splits={"train": {"rows": 1}})
    (sample,) = load_samples(task, DataOptions(found["data_dir"])).samples
    assert (sample.text, sample.target) == ("Q: one?", "right")
    with pytest.raises(DataError, match="holds dict"):
        task.make_samples({"train": _split({**rows[0], "q": {"a": 1}})}, None)


def _split(row: dict[str, Any]) -> Any:
    from unlearnbench.tasks.spec import SplitRows

    return SplitRows("train", (row,), "local", "0" * 64)
