from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_main import call
from tests.tasks.kinds.test_answers import LOGPROBS, ROWS, write
from unlearnbench import ScriptedModel, evaluate


def test_figures_are_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = write(tmp_path, ROWS)
    evaluate(ScriptedModel(logprobs=LOGPROBS), "toy_answers", **found)
    (run,) = (tmp_path / "out").glob("*/none")
    file = tmp_path / "figures.json"
    line = ["rescore", str(run), "--include-path", str(found["include_path"][0])]
    assert call(*line, "--reference", str(run), "--json", str(file)) == 0
    said = capsys.readouterr().out
    assert "forget quality (arithmetic mean)" in said
    assert "p 1, log10 p 0.00, D 0.0000, n 2" in said
    assert "note: the reference is this very run" in said
    content = json.loads(file.read_text())
    assert set(content) == {"tasks", "differences", "forget_quality"}


@pytest.mark.parametrize("which", ["run", "reference"])
def test_a_run_that_is_missing_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    found = write(tmp_path, ROWS)
    evaluate(ScriptedModel(logprobs=LOGPROBS), "toy_answers", **found)
    (run,) = map(str, (tmp_path / "out").glob("*/none"))
    line = ["rescore", str(tmp_path / "nowhere"), "--reference", run]
    if which == "reference":
        line = ["rescore", run, "--reference", str(tmp_path / "nowhere")]
    assert call(*line) == 2
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert "nowhere" in error[0]
