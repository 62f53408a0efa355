"""Figures by a field of the rows: RWKU's persons."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_main import call
from tests.tasks.kinds.test_answers import LOGPROBS, ROWS, write
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.evaluation.grouped import grouped_rows, summarize

SCORES = {"Ada": [100.0, 0.0, 50.0], "Bob": [20.0], "Cleo": [0.0, 0.0, 30.0, 90.0]}


def test_groups_of_several_sizes_are_pooled_and_each_counted_once() -> None:
    found = summarize(SCORES, 0)
    assert {name: (n, e.value) for name, (n, e) in found.groups.items()} == {
        "Ada": (3, 50.0),
        "Bob": (1, 20.0),
        "Cleo": (4, 30.0),
    }
    assert found.groups["Bob"][1].ci is None
    assert found.pooled.value == pytest.approx(290 / 8)
    assert found.each.value == pytest.approx(100 / 3)
    assert found.pooled.ci is not None
    assert found.pooled.ci[0] < 290 / 8 < found.pooled.ci[1]


def test_rows_that_stand_or_fall_together_widen_the_interval() -> None:
    """Forty rows of four persons, each all right or all wrong: as four samples, not as forty."""
    groups = {str(n): [100.0 * (n % 2)] * 10 for n in range(4)}
    rows = {str(n): [100.0 * (n % 2)] for n in range(40)}
    together, apart = summarize(groups, 0).pooled, summarize(rows, 0).pooled
    assert together.value == apart.value == 50.0
    assert together.ci is not None
    assert apart.ci is not None
    assert np.diff(together.ci)[0] > 1.5 * np.diff(apart.ci)[0]
    assert (together.stderr or 0) > 2.5 * (apart.stderr or 0)


@pytest.mark.parametrize("one", [100.0, 0.0])
def test_an_interval_stays_where_scores_can_be(one: float) -> None:
    """Persons of very different sizes, as the first rows of RWKU have them."""
    groups = {"a": [one] * 19, "b": [one] * 3, "c": [one] * 9 + [50.0], "d": [one] * 8}
    found = summarize(groups, 0).pooled.ci
    assert found is not None
    assert 0 <= found[0] < found[1] <= 100


def test_one_person_has_a_figure_and_no_interval_over_persons() -> None:
    found = summarize({"Ada": SCORES["Ada"]}, 0)
    assert (found.pooled.value, found.pooled.ci) == (50.0, None)
    assert (found.each.value, found.each.ci) == (50.0, None)
    assert found.groups["Ada"][1].ci is not None
    assert "pooled, over 1 group" in [row[1] for row in grouped_rows({"t": found})]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [{**row, "who": w} for row, w in zip(ROWS, "ab", strict=True)]
    found = write(tmp_path, rows)
    evaluate(ScriptedModel(logprobs=LOGPROBS), "toy_answers", **found)
    (folder,) = (tmp_path / "out").glob("*/none")
    return folder


def test_the_command_reads_the_rows_again(run: Path, tmp_path: Path) -> None:
    line = ["rescore", str(run), "--include-path", str(tmp_path / "tasks")]
    line += ["--data-dir", str(tmp_path / "data"), "--json", str(tmp_path / "f.json")]
    assert call(*line, "--by", "who") == 0
    found = json.loads((tmp_path / "f.json").read_text())["toy_answers"]
    stated = json.loads((run / "run.json").read_text())["tasks"]["toy_answers"]["value"]
    assert found["pooled"]["value"] == pytest.approx(stated)
    assert {name: each["n"] for name, each in found["groups"].items()} == {"a": 1, "b": 1}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--by", "nobody"], "has no text in field 'nobody' (--by)"),
        (["--by", "who", "--reference", "x"], "leave --reference out"),
        (["--by", "who", "--data-dir", "."], "toy_answers"),
    ],
)
def test_bad_input_is_one_line(
    run: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["rescore", str(run), "--include-path", str(tmp_path / "tasks")]
    line += ["--data-dir", str(tmp_path / "data")]
    assert call(*line, *more) == 2
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in shown


def test_other_rows_than_the_run_s_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = (tmp_path / "data").rglob("train.jsonl")
    path.write_text(path.read_text().replace("one?", "uno?"))
    line = ["rescore", str(run), "--include-path", str(tmp_path / "tasks"), "--by", "who"]
    assert call(*line, "--data-dir", str(tmp_path / "data")) == 2
    assert "made from other rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [("value", "the mean of its records' scores is"), ("data", "made from other rows")],
)
def test_what_the_run_does_not_bear_out_is_refused(
    run: Path, tmp_path: Path, change: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((run / "run.json").read_text())
    task = content["tasks"]["toy_answers"]
    task[change] = 99.0 if change == "value" else []
    (run / "run.json").write_text(json.dumps(content))
    line = ["rescore", str(run), "--include-path", str(tmp_path / "tasks"), "--by", "who"]
    assert call(*line, "--data-dir", str(tmp_path / "data")) == 2
    (shown,) = capsys.readouterr().err.splitlines()
    assert said in shown
