"""Votes from finished runs, groups from a file, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import write_jsonl
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.evaluation.fairness import TwoGroups, read_votes

FILE: dict[str, Any] = {
    "task": "toy_toxic",
    "description": "Toy.",
    "dataset_path": "toy/toxic",
    "dataset_name": "all",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{label}}",
    "target_is": "text",
    "choices": ["choices"],
    "metric": "accuracy",
    "want": "high",
    "splits": {"test": {"rows": 24}},
    "metadata": {"version": 1.0},
}
ROWS = [
    {
        "text": f"text {n}",
        "label": "toxic" if n % 3 else "benign",
        "choices": ["toxic", "benign"],
        "group": "b" if n % 2 else "a",
    }
    for n in range(24)
]


def decides(model: int, number: int) -> bool:
    """What a model says of a row: sometimes wrong."""
    return (ROWS[number]["label"] == "toxic") != ((number + model) % 5 == 0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Of three models."""
    root = tmp_path_factory.mktemp("fair")
    (root / "tasks").mkdir()
    (root / "tasks/toy_toxic.yaml").write_text(json.dumps(FILE))
    (root / "data/toy/toxic/all").mkdir(parents=True)
    bare = [{name: row[name] for name in row if name != "group"} for row in ROWS]
    write_jsonl(root / "data/toy/toxic/all/test.jsonl", bare)
    write_jsonl(root / "groups.jsonl", ROWS)
    found: dict[str, Any] = {"data_dir": root / "data", "include_path": [root / "tasks"]}
    for model in range(3):
        said = {
            f"{row['text']} {choice}": [-1.0 if (choice == "toxic") == decides(model, n) else -2.0]
            for n, row in enumerate(ROWS)
            for choice in ("toxic", "benign")
        }
        scripted = ScriptedModel(logprobs=said, name=f"shard-{model}")
        evaluate(scripted, "toy_toxic", output=root / "out", **found)
    return sorted((root / "out").glob("*/none"))


def asked(runs: list[Path], **changes: str) -> list[str]:
    options = {
        "task": "toy_toxic",
        "positive": "toxic",
        "groups": str(runs[0].parents[2] / "groups.jsonl"),
    }
    given = [f"--{name.replace('_', '-')}={value}" for name, value in (options | changes).items()]
    return ["fairness", *map(str, runs), *given]


def test_votes_are_the_likelier_choices(runs: list[Path]) -> None:
    question = TwoGroups("toy_toxic", "toxic", runs[0].parents[2] / "groups.jsonl")
    votes = read_votes(runs, question)
    assert votes.names == ("a", "b")
    assert votes.votes.tolist() == [[decides(m, n) for m in range(3)] for n in range(24)]
    assert votes.labels.tolist() == [row["label"] == "toxic" for row in ROWS]
    assert votes.groups.tolist() == [row["group"] == "b" for row in ROWS]
    other = read_votes(runs, TwoGroups("toy_toxic", "benign", question.groups))
    assert (other.votes == 1 - votes.votes).all()


def test_the_command_shows_each_way(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fair.json"
    assert call(*asked(runs, json=str(file))) == 0
    said = capsys.readouterr().out
    assert all(way in said for way in ("majority", "aggregate-process", "ensemble"))
    assert "3 models; rules fitted on about 12 rows" in said
    content = json.loads(file.read_text())
    assert content["groups"] == ["a", "b"]
    assert set(content["ways"]["ensemble"]["rates"]) == {"tpr_0", "tpr_1", "fpr_0", "fpr_1"}
    assert call(*asked(runs[:1])) == 0, "one checkpoint"
    assert "1 model; rules" in capsys.readouterr().out


def test_votes_of_a_part_of_the_rows_are_refused(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    part = tmp_path / "part"
    shutil.copytree(runs[0], part)
    content = json.loads((part / "run.json").read_text())
    content["tasks"]["toy_toxic"]["drawn"] = {"seed": 0, "of": 900}
    (part / "run.json").write_text(json.dumps(content))
    assert call(*asked(runs[:1]), str(part)) == 2
    assert "of 900 samples; evaluate it whole" in capsys.readouterr().err


def test_what_says_nothing_of_two_groups_is_one_line(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(said: str, given: list[str]) -> None:
        assert call(*given) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert said in line

    def groups(name: str, rows: list[dict[str, Any]]) -> str:
        write_jsonl(tmp_path / name, rows)
        return str(tmp_path / name)

    alone = groups("one.jsonl", [{**row, "group": "a"} for row in ROWS])
    refused("1 groups (a); two are compared", asked(runs, groups=alone))
    short = groups("short.jsonl", ROWS[:9])
    refused("no 'group' for toy_toxic's row test/9", asked(runs, groups=short))
    refused("no 'race' for toy_toxic's row test/0", asked(runs, group_field="race"))
    turned = groups("turned.jsonl", ROWS[::-1])
    refused("has other rows than toy_toxic, or another order", asked(runs, groups=turned))
    apart = [{**row, "group": "b" if row["label"] == "toxic" else "a"} for row in ROWS]
    empty = groups("empty.jsonl", apart)
    refused("group a has 0 rows with label 1", asked(runs, groups=empty))
    refused("--positive nice is not one of them", asked(runs, positive="nice"))
    refused("two of the runs are of one checkpoint", asked([runs[0], runs[0]]))
    refused("has no news_verbmem", asked(runs, task="news_verbmem"))
    refused("nowhere", asked([*runs, tmp_path / "nowhere"]))
