"""lm-eval's tasks as utility columns of comparisons and boards."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill
from unlearnbench.boards import add_entry, read_board
from unlearnbench.boards.entry import Submission
from unlearnbench.boards.tables import build_board
from unlearnbench.boards.verify import verify_board
from unlearnbench.lm_eval.tables import below_chance
from unlearnbench.results import HarnessResult
from unlearnbench.runs.folder import read_run

N = 8


def put(folder: Path, value: float, **changes: Any) -> None:
    """Put an lm-eval result into every run of a model."""
    metric = {"name": "acc", "filter": "none", "value": value, "stderr": 0.01}
    result = {
        "kind": "task",
        "version": "2.0",
        "lm_eval": "0.4.13",
        "metrics": [{**metric, "higher_is_better": True}, {**metric, "name": "acc_norm"}],
        "n": 100,
        "num_fewshot": 0,
        "config_sha256": "a" * 64,
        "documents_sha256": "b" * 64,
        "samples_sha256": "c" * 64,
        **changes,
    }
    HarnessResult.model_validate(result)
    for path in folder.glob("*/run.json"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["harness"] = {"mm|u<b>": result}
        path.write_text(json.dumps(content), encoding="utf-8")
        assert read_run(path.parent).harness is not None


@pytest.mark.parametrize(
    ("right", "n", "below"),
    # Of 408 chemistry questions 84 right are the most that guessing reaches in 2.5% of cases.
    [(84, 408, True), (85, 408, False), (102, 408, False), (0, 12, False), (0, 13, True)],
)
def test_below_chance_is_marked_where_guessing_seldom_gets(right: int, n: int, below: bool) -> None:
    guesses = sum(math.comb(n, k) * 0.25**k * 0.75 ** (n - k) for k in range(right + 1))
    assert (guesses < 0.025) == below
    metric = {"name": "acc", "filter": "none", "value": right / n}
    facts = {"kind": "task", "version": "1", "lm_eval": "0.4.13", "metrics": [metric], "n": n}
    assert below_chance(HarnessResult.model_validate({**facts, "chance": 0.25})) == below
    assert not below_chance(HarnessResult.model_validate(facts)), "chance is not known"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Bench, dict[str, Path]]:
    bench = Bench(tmp_path, n=N)
    made = {
        "target": bench.model("target", none=Skill.of(0.9, 0.9, n=N), int4=Skill.of(0.9, 0.9, n=N)),
        "retrained": bench.model("retrained", none=Skill.of(0.2, 0.9, n=N)),
        "unlearned": bench.model(
            "unlearned", none=Skill.of(0.2, 0.9, n=N), int4=Skill.of(0.8, 0.9, n=N)
        ),
    }
    for value, folder in zip((0.5, 0.25, 0.125), made.values(), strict=True):
        put(folder, value)
    return bench, made


def test_compare_shows_them(
    models: tuple[Bench, dict[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, made = models
    anchors = ["--target", str(made["target"]), "--retrained", str(made["retrained"])]
    assert call("compare", str(made["unlearned"]), *anchors) == 0
    out = capsys.readouterr().out
    assert "General ability, by lm-eval" in out
    assert "mm\\|u<b> acc (high)" in out
    assert "0.1250 +- 0.0100" in out
    assert "0.5000 +- 0.0100" in out
    assert "acc_norm" not in out
    put(made["unlearned"], 0.3, documents_sha256="d" * 64)
    assert call("compare", str(made["unlearned"]), *anchors) == 2
    error = capsys.readouterr().err
    assert "documents_sha256 is " in error
    assert len(error.splitlines()) == 1


def test_boards_show_them_and_say_that_they_are_stated(
    models: tuple[Bench, dict[str, Path]], tmp_path: Path
) -> None:
    bench, made = models
    folder = tmp_path / "board"
    folder.mkdir()
    rules = {
        "title": "A board",
        "base_model": "made",
        "tasks": dict.fromkeys(("made_knowmem_f", "made_knowmem_r", "made_privleak"), 1.0),
        "precisions": ["none", "rtn-int4"],
        "utility_floor": 0.5,
        "ranking": ["made_knowmem_f"],
        "publish_texts": True,
    }
    (folder / "board.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    (folder / "tasks").mkdir()
    for path in bench.tasks.glob("*.yaml"):
        (folder / "tasks" / path.name).write_bytes(path.read_bytes())
    board = read_board(folder)
    for name, runs in made.items():
        role: Any = name
        add_entry(board, [runs], Submission(name, role))
    _, verdicts = verify_board(board)
    assert [v.problems for v in verdicts] == [[], [], []]
    assert all("lm-eval's results are as stated" in " ".join(v.notes) for v in verdicts)
    build_board(board)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "General ability, by lm-eval" in text
    assert "mm&#124;u&lt;b&gt; acc" in text
    rows = list(csv.DictReader(io.StringIO((folder / "board.csv").read_text("utf-8"))))
    assert {(row["entry"], row["lm_eval mm|u<b>"]) for row in rows} == {
        ("unlearned", "0.125"),
        ("target", "0.5"),
        ("retrained", "0.25"),
    }
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert "General ability" in page
    assert "mm|u&lt;b&gt; acc (high)" in page
    assert "<b> acc" not in page
    put(made["unlearned"], 0.3, num_fewshot=5)
    add_entry(board, [made["unlearned"]], Submission("unlearned", "unlearned"))
    _, verdicts = verify_board(board)
    problems = {v.name: " ".join(v.problems) for v in verdicts}
    assert "num_fewshot is " in problems["unlearned"]
