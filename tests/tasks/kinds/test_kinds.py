"""A kind of task is one file: this one lies in a temporary folder, and nothing else knows of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlearnbench import ScriptedModel, evaluate
from unlearnbench.cli import main
from unlearnbench.tasks import kinds

KIND = '''
"""Questions with choices: the model's is the one that it finds likeliest, token by token."""

from typing import Literal

from unlearnbench.requests import Score
from unlearnbench.results import AnswerRecord
from unlearnbench.tasks.rows import limited
from unlearnbench.tasks.spec import Name, Sample, TaskSpec

NAME = "toy_choice"


class ChoiceTask(TaskSpec):
    """One question a row, and after it the choices, the right one first."""

    output_type: Literal["toy_choice"]
    test_split: Name
    choices: list[str]

    @property
    def asked_splits(self):
        return (self.test_split,)

    def make_samples(self, splits, limit):
        rows = enumerate(limited(splits[self.test_split].rows, limit))
        return [
            Sample(f"{self.test_split}/{i}", self.test_split, self.plain_text(row, "toy"))
            for i, row in rows
        ]

    def requests(self, sample, settings):
        name = self.request_id(sample)
        return [[Score(f"{name}:{i}", sample.text + c) for i, c in enumerate(self.choices)]]

    def record(self, sample, answers):
        likely = [float(answer.logprobs.mean()) for answer in answers]
        chosen = self.choices[likely.index(max(likely))]
        facts = {"question": sample.text, "chosen": chosen, "logprobs": likely}
        score = float(chosen == self.choices[0])
        return AnswerRecord(task=self.task, id=sample.id, facts=facts, score=score)


TASK = ChoiceTask
'''
TASK = """task: toy_choice
tag: [toys]
description: Toy.
dataset_path: toy/choices
dataset_name: all
output_type: toy_choice
test_split: test
doc_to_text: "{{q}} "
choices: ["right", "wrong"]
metric: accuracy
want: low
splits: {test: {rows: 4}}
metadata: {version: 1.0}
"""


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path | list[Path]]:
    """What finds the toy's task and its rows."""
    (tmp_path / "kinds").mkdir()
    (tmp_path / "kinds" / "toy_choice.py").write_text(KIND)
    monkeypatch.setattr(kinds, "__path__", [*kinds.__path__, str(tmp_path / "kinds")])
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "toy_choice.yaml").write_text(TASK)
    rows = tmp_path / "data" / "toy" / "choices" / "all" / "test.jsonl"
    rows.parent.mkdir(parents=True)
    rows.write_text("".join(json.dumps({"q": f"Which {n}?"}) + "\n" for n in range(4)))
    return {
        "data_dir": tmp_path / "data",
        "include_path": [tmp_path / "tasks"],
        "output": tmp_path / "out",
    }


def model(name: str, knows: int) -> ScriptedModel:
    """A model that finds the right choice likelier in its first questions."""
    likely = {}
    for n in range(4):
        likely[f"Which {n}? right"] = [-1.0 if n < knows else -3.0] * 3
        likely[f"Which {n}? wrong"] = [-2.0] * 3
    return ScriptedModel(logprobs=likely, name=name)


def test_a_kind_of_task_is_one_file(options: dict[str, Path | list[Path]]) -> None:
    (result,) = evaluate(model("unlearned", 3), "toy_choice", **options)  # type: ignore[arg-type]
    found = result.tasks["toy_choice"]
    assert (found.value, found.n, found.metric, found.auc) == (75.0, 4, "accuracy", None)
    assert found.ci is not None
    (samples,) = Path(str(options["output"])).rglob("toy_choice.jsonl")
    first = json.loads(samples.read_text().splitlines()[0])
    assert first["facts"] == {
        "question": "Which 0? ",
        "chosen": "right",
        "logprobs": [-1.0, -2.0],
    }
    (again,) = evaluate(model("unlearned", 3), "toys", **options)  # type: ignore[arg-type]
    assert again == result, "what is there already is read, and not asked again"


def test_its_runs_are_listed_and_compared(
    options: dict[str, Path | list[Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    for name, knows in (("target", 4), ("retrained", 0), ("unlearned", 1)):
        evaluate(model(name, knows), "toy_choice", **options)  # type: ignore[arg-type]
    (tasks,) = options["include_path"]  # type: ignore[misc]
    with pytest.raises(SystemExit) as done:
        main(["tasks", "--include-path", str(tasks)])
    assert done.value.code == 0
    assert "toy_choice" in capsys.readouterr().out
