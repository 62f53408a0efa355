"""TOFU's legacy logs: what is taken, what is held against it, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.golden.published import Published
from unlearnbench.importing.tofu import FORGOTTEN
from unlearnbench.runs.folder import read_run

FILES = [FORGOTTEN, "eval_log.json", "eval_real_author_wo_options.json"]
FILES += ["eval_real_world_wo_options.json"]


def block(rows: int, false: int) -> dict[str, dict[str, Any]]:
    """What a file holds: of row i the answer's two tokens have i / 10 + 0.1 nats each."""
    each: dict[str, list[Any]] = {
        "avg_gt_loss": [i / 10 + 0.1 for i in range(rows)],
        "gt_loss": [2 * (i / 10 + 0.1) for i in range(rows)],
        "num_token_gt": [2] * rows,
        "avg_paraphrased_loss": [1.0] * rows,
        "average_perturb_loss": [[2.0 + k for k in range(false)]] * rows,
        "truth_ratio": [math.exp(1 - 2 - (false - 1) / 2)] * rows,
        "generated_text": [["[INST] q? [/INST]", "the cat", "the black cat"]] * rows,
        "rougeL_recall": [2 / 3] * rows,
    }
    return {key: {str(i): v for i, v in enumerate(values)} for key, values in each.items()}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    home = tmp_path / "logs" / "model"
    home.mkdir(parents=True)
    for name in FILES[:2]:
        (home / name).write_text(json.dumps(block(3, 5)))
    return tmp_path / "logs"


def bring(logs: Path, prefix: str = "tofu_forget10") -> int:
    line = ["import", "--format", "tofu", str(logs), "--task-prefix", prefix]
    return call(*line, "--out", str(logs.parent / "out"))


def test_losses_and_texts_become_records_of_the_first_rows(logs: Path) -> None:
    assert bring(logs) == 0
    run = read_run(logs.parent / "out" / "model" / "unknown")
    assert run.imported is not None
    assert run.imported.differences == {}
    assert {name: task.n for name, task in run.tasks.items()} == {
        f"tofu_{which}_{kind}": 3
        for which in ("forget10", "retain")
        for kind in ("probability", "rouge")
    }
    mean = sum(math.exp(-(i / 10 + 0.1)) for i in range(3)) / 3
    assert run.tasks["tofu_forget10_probability"].value == pytest.approx(100 * mean)
    assert run.tasks["tofu_forget10_rouge"].value == pytest.approx(200 / 3)


def test_what_differs_is_shown(logs: Path) -> None:
    content = block(3, 5)
    content["gt_loss"]["1"] = 1.0
    content["truth_ratio"]["1"] = -1e-10  # none is negative, and this one's 1 / x is none
    content["truth_ratio"]["2"] = 0.5
    (logs / "model" / FORGOTTEN).write_text(json.dumps(content))
    assert bring(logs) == 0
    imported = read_run(logs.parent / "out" / "model" / "unknown").imported
    assert imported is not None
    where = "tofu_forget10_probability/train"
    assert imported.differences == {
        f"{where}/1/probability": pytest.approx(math.exp(-0.2) - math.exp(-0.5)),
        f"{where}/2/truth_ratio": pytest.approx(math.exp(-3) - 0.5),
        f"{where}/2/truth_better": pytest.approx(0.5 - math.exp(-3)),
    }


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("avg_gt_loss", "much", "row 1: a loss is no finite number"),
        ("average_perturb_loss", 2.0, "row 1: an answer has one loss"),
        ("average_perturb_loss", [1.0, math.nan], "row 1: a loss is no finite number"),
        ("generated_text", ["prompt"], "row 1: generated_text is not a prompt"),
    ],
)
def test_a_damaged_row_is_one_line(
    logs: Path, capsys: pytest.CaptureFixture[str], key: str, value: object, says: str
) -> None:
    content = block(3, 5)
    content[key]["1"] = value
    (logs / "model" / FORGOTTEN).write_text(json.dumps(content))
    assert bring(logs) == 2
    assert says in capsys.readouterr().err


def test_other_rows_and_no_forget_set_are_refused(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bring(logs, "tofu") == 2
    assert "give --task-prefix tofu_forget01" in capsys.readouterr().err
    (logs / "model" / FORGOTTEN).write_text(json.dumps(block(41, 5)))
    assert bring(logs, "tofu_forget01") == 2
    assert "41 rows, and tofu_forget01_rouge has 40" in capsys.readouterr().err


@pytest.mark.slow  # ROUGE of 1,634 texts
def test_the_published_logs_give_their_forget_quality_and_utilities(
    published: Published, tmp_path: Path
) -> None:
    """BENCHMARKS.md, 1.4: 300 rows, weight decay 0.01, Llama-2."""
    name = "ft_epoch5_lr1e-05_llama2-7b_{}_wd0.01"
    utility = {"full": 0.622677, "retain90": 0.613745}
    for which in utility:
        home = tmp_path / "logs" / which
        home.mkdir(parents=True)
        for log in FILES:
            source = published.file(f"tofu-legacy/{name.format(which)}/{log}")
            (home / log).write_bytes(source.read_bytes())
    assert bring(tmp_path / "logs") == 0
    runs = {which: tmp_path / "out" / which / "unknown" for which in utility}
    for which, path in runs.items():
        imported = read_run(path).imported
        assert imported is not None
        assert imported.differences == {}
        file = tmp_path / "figures.json"
        line = ["rescore", str(path), "--reference", str(runs["retain90"]), "--json", str(file)]
        assert call(*line) == 0
        found = json.loads(file.read_text())
        assert found["model_utility"]["value"] == pytest.approx(utility[which], abs=1e-6)
        quality = found["forget_quality"]["tofu_forget10_probability"]
        if which == "full":
            assert quality["geometric"]["n"] == 300
            assert quality["geometric"]["statistic"] == pytest.approx(0.396667, abs=1e-6)
            assert quality["geometric"]["p"] == pytest.approx(1.834066e-21, rel=1e-6)
            assert quality["arithmetic"]["p"] == pytest.approx(6.031912e-23, rel=1e-6)
