"""TOFU's logs of open-unlearning: forty made-up rows, and what is refused."""

from __future__ import annotations

import json
import math
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from tests.cli.test_main import call
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.importing import ImportOptions, import_runs
from unlearnbench.results import AnswerRecord, RunResult
from unlearnbench.runs.folder import RunFolder
from unlearnbench.tasks.kinds.answers import AnswerFacts, facts_of

N = 40
TRUE = [0.5 + n / 10 for n in range(N)]
FALSE = [[1.0 + n / 10, 2.0] for n in range(N)]
LOSS = [n / 40 for n in range(N)]


def block(rows: list[dict[str, Any]], mean: float | None = None) -> dict[str, Any]:
    return {"value_by_index": {str(n): row for n, row in enumerate(rows)}, "agg_value": mean}


def log() -> dict[str, Any]:
    ratios = [
        math.exp(-fmean(f)) / (math.exp(-t) + 1e-10) for f, t in zip(FALSE, TRUE, strict=True)
    ]
    prob = [math.exp(-loss) for loss in LOSS]
    text = {"input": "q", "ground_truth": "asked boats", "generation": "asking boats"}
    recall = {"rougeL_recall": 1.0, "rouge1_recall": 1.0, "rougeL_f1": 1.0}
    strength = [{"score": (1 + n % 3) / 4} for n in range(N)]
    return {
        "forget_Q_A_Prob": block(
            [{"prob": p, "avg_loss": x} for p, x in zip(prob, LOSS, strict=True)], fmean(prob)
        ),
        "forget_Q_A_PARA_Prob": block([{"avg_loss": x} for x in TRUE]),
        "forget_Q_A_PERT_Prob": block([{"avg_loss": x} for x in FALSE]),
        "forget_Q_A_ROUGE": block([text | recall for _ in range(N)], 1.0),
        "forget_truth_ratio": block(
            [{"score": s} for s in ratios], fmean(min(s, 1 / (s + 1e-10)) for s in ratios)
        ),
        "extraction_strength": block(strength, fmean(row["score"] for row in strength)),
        "forget_quality": {"agg_value": None},
        "mia_zlib": {"agg_value": math.nan, "forget": block([{"score": math.nan}])},
    }


def run(folder: Path, content: dict[str, Any], prefix: str = "tofu_forget01") -> RunResult:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "TOFU_EVAL.json").write_text(json.dumps(content))
    options = ImportOptions("open-unlearning", folder, prefix, folder / "out")
    ((_, result),) = import_runs(options)
    return result


def test_every_figure_is_made_again_and_nan_elsewhere_is_no_matter(tmp_path: Path) -> None:
    result = run(tmp_path, log())
    assert set(result.tasks) == {"tofu_forget01_probability", "tofu_forget01_rouge"}
    assert result.imported is not None
    assert result.imported.differences == {}
    found = result.tasks["tofu_forget01_probability"]
    assert found.value == pytest.approx(100 * fmean(math.exp(-loss) for loss in LOSS))
    assert "extraction_floor" not in found.scores, "it does not say how many tokens there are"
    folder = RunFolder(tmp_path / "out" / "model" / "unknown")
    records = folder.read_records("tofu_forget01_probability", found.records_sha256)
    third = records[2]
    assert isinstance(third, AnswerRecord)
    assert third.id == "train/2"
    assert third.scores["extraction_strength"] == 0.75
    facts = facts_of(third, AnswerFacts)
    assert (facts.loss, facts.true_loss, facts.false_losses) == (LOSS[2], TRUE[2], (1.2, 2.0))
    assert (facts.prompt, facts.answer) == ("q", "asked boats")
    assert result.tasks["tofu_forget01_rouge"].value == 100


def test_what_differs_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = log()
    content["forget_Q_A_ROUGE"]["value_by_index"]["3"]["rougeL_recall"] = 0.5
    content["forget_Q_A_Prob"]["value_by_index"]["4"]["prob"] += 0.125
    content["forget_truth_ratio"]["value_by_index"]["5"]["score"] *= 2
    content["forget_truth_ratio"]["agg_value"] = 0.0
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "TOFU_EVAL.json").write_text(json.dumps(content))
    line = ["import", "--format", "open-unlearning", str(tmp_path), "--out", str(tmp_path / "out")]
    assert call(*line, "--task-prefix", "tofu_forget01") == 0
    said = capsys.readouterr().out
    assert "tofu_forget01_rouge/train/3/rougeL_recall_stem: ours is +0.5" in said
    assert "tofu_forget01_probability/train/4/probability: ours is -0.125" in said
    assert "tofu_forget01_probability/train/5/truth_ratio: ours is " in said
    assert "tofu_forget01_probability/mean_truth_ratio: ours is " in said
    assert said.count("ours is") == 4


@pytest.mark.parametrize("prefix", ["tofu", "tofu_retain_rouge"])
def test_a_log_does_not_say_what_was_to_be_forgotten(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(OptionError, match="does not say which rows were to be forgotten"):
        run(tmp_path, log(), prefix)


def test_a_log_of_other_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="has 40 rows, and tofu_forget05_.* has 200"):
        run(tmp_path, log(), "tofu_forget05")


@pytest.mark.parametrize(
    ("block_", "row", "words"),
    [
        ("forget_Q_A_Prob", {"avg_loss": math.nan}, "row 7: a loss is no finite number"),
        ("forget_Q_A_PERT_Prob", {"avg_loss": []}, "row 7: a loss is no finite number"),
        ("forget_Q_A_PERT_Prob", {"avg_loss": [1.0, None]}, "row 7: a loss is no finite number"),
        ("forget_Q_A_PARA_Prob", {"avg_loss": -1.0}, "row 7: a loss is no finite number"),
        (
            "forget_Q_A_PERT_Prob",
            {"avg_loss": 1.0},
            "row 7: forget_Q_A_PERT_Prob: avg_loss is no list",
        ),
        (
            "forget_Q_A_Prob",
            {"avg_loss": [1.0]},
            "row 7: forget_Q_A_Prob: avg_loss is a list",
        ),
        ("forget_Q_A_PERT_Prob", {"avg_loss": [1.0]}, "PERT_Prob: 1 losses, and row 0 has 2"),
        ("extraction_strength", {"score": 1.5}, "row 7: a share is no number from 0 to 1"),
        ("forget_Q_A_ROUGE", {"generation": None}, "train/7 lacks its output"),
    ],
)
def test_a_value_of_a_part_that_is_taken(
    tmp_path: Path, block_: str, row: dict[str, Any], words: str
) -> None:
    content = deepcopy(log())
    content[block_]["value_by_index"]["7"] |= row
    with pytest.raises(ResultError, match=words):
        run(tmp_path, content)


def test_a_row_that_is_missing_is_said(tmp_path: Path) -> None:
    content = log()
    del content["forget_Q_A_PERT_Prob"]["value_by_index"]["7"]
    with pytest.raises(ResultError, match="forget_Q_A_PERT_Prob has 39 rows"):
        run(tmp_path, content)
