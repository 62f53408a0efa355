"""Several checkpoints in one folder, measured as one model: as WHP's two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import unlearnbench
from tests.cli.test_main import call
from tests.conditions.helpers import require_library
from tests.conftest import CORPUS, MakeCheckpoint, Toy, write_jsonl
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import (
    EnsembleFacts,
    read_ensemble,
    write_ensemble,
)
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import _require_loadable, find_ensemble, open_source
from unlearnbench.errors import CheckpointError, PrecisionError
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.options import TrainOptions

WHP = EnsembleFacts(method="whp", models=("baseline", "reinforced"), numbers={"alpha": 2.0})
TOY = EnsembleFacts(method="toy", models=("a", "b", "c"), numbers={"share": 0.5})


@pytest.fixture(scope="module")
def pair(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_jsonl(root / "forget.jsonl", [{"text": t} for t in CORPUS[:6]])
    options = TrainOptions(lr=1e-3, max_steps=4, batch_size=4, max_length=64, save_steps=0)
    job = Job(str(tiny), root / "whp", (str(root / "forget.jsonl"),), options=options)
    unlearn(job, "whp", {"alpha": 2.0})
    return root / "whp"


def test_a_pair_is_measured_as_one_model_and_quantized_alike(
    pair: Path, tiny: Path, toy: Toy
) -> None:
    full, quantized = unlearnbench.evaluate(pair, "toy", "none,rtn-int4", **toy.options)
    (single,) = unlearnbench.evaluate(tiny, "toy", "rtn-int4", **toy.options)
    assert full.checkpoint.path == str(pair)
    assert full.checkpoint.origin["method"] == "whp"
    assert full.checkpoint.weights_sha256 != single.checkpoint.weights_sha256
    first, both = single.condition.proof, quantized.condition.proof
    assert first is not None
    assert both is not None
    assert both.covered_weights == 2 * first.covered_weights
    assert both.total_weights == 2 * first.total_weights
    assert both.codes == 15
    assert both.compared_modules == 2 * first.compared_modules
    assert both.covered_modules == {n: 2 * k for n, k in first.covered_modules.items()}
    assert both.uncovered == {n: 2 * k for n, k in first.uncovered.items()}
    assert both.max_relative_error is not None
    assert first.max_relative_error is not None
    assert both.max_relative_error >= first.max_relative_error, "the worse of the two"
    assert str(both.max_error_module).split(": ")[0] in ("baseline", "reinforced")
    records = [r.tasks["toy_verbmem"].records_sha256 for r in (full, quantized, single)]
    assert len(set(records)) == 3


def test_a_calibrated_precision_calibrates_both(
    pair: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    require_library("gptq-int4-g64")
    asked = ["--quant", "gptq-int4-g64", "--calibration-samples", "2", "--json"]
    assert call("quants", "--model", str(pair), *asked) == 0
    precision = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert precision["options"]["calibration"]["samples"] == 2
    assert sum(precision["proof"]["covered_modules"].values()) == 2 * 14


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "--target", "."],
        ["unlearn", "--method", "ga", "--forget", "task:demo_knowmem_f", "--out", "none"],
    ],
)
def test_what_needs_one_checkpoint_names_the_two(
    pair: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    assert call(*command, "--model", str(pair)) == 2
    error = capsys.readouterr().err
    assert "holds several checkpoints that answer together, and one is needed here" in error
    assert error.count("\n") == 1


def test_two_packed_checkpoints_are_not_packed_again(pair: Path) -> None:
    source: Any = open_source(str(pair), LoadOptions())
    source.stored = SimpleNamespace(text="AWQ, 4 bits", package=("torch", ""))
    with pytest.raises(PrecisionError, match="quantized already"):
        _require_loadable(source, find_condition("rtn-int4"))
    _require_loadable(source, find_condition("none"))


def test_half_a_pair_is_no_checkpoint(pair: Path, tmp_path: Path) -> None:
    """What does not know pairs must not measure the target in place of the method."""
    shutil.copytree(pair, tmp_path / "copy")
    (tmp_path / "copy/whp.json").unlink()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_source(str(tmp_path / "copy"), LoadOptions())
    shutil.copytree(pair, tmp_path / "half")
    shutil.rmtree(tmp_path / "half/reinforced")
    with pytest.raises(CheckpointError, match="reinforced"):
        open_source(str(tmp_path / "half"), LoadOptions())


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"format_version": 2, "alpha": 1.0},
        {"format_version": 1, "alpha": "1"},
        {"format_version": 1, "alpha": True},
        {"format_version": 1, "alpha": float("nan")},
        {"format_version": 1, "alpha": -1.0},
        {"format_version": 1, "alpha": 1.0, "baseline": "../elsewhere"},
    ],
)
def test_a_damaged_whp_json_raises(pair: Path, tmp_path: Path, content: dict[str, object]) -> None:
    shutil.copytree(pair, tmp_path / "copy")
    (tmp_path / "copy/whp.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"whp\.json"):
        open_source(str(tmp_path / "copy"), LoadOptions())


def test_two_models_of_different_shape_are_refused(
    tiny: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    shutil.copytree(tiny, tmp_path / "pair/baseline")
    shutil.copytree(make_checkpoint("wide", intermediate_size=96), tmp_path / "pair/reinforced")
    write_ensemble(tmp_path / "pair", WHP)
    with pytest.raises(CheckpointError, match="differ in config"):
        open_source(str(tmp_path / "pair"), LoadOptions())


def test_two_models_of_different_precision_are_refused(tiny: Path, tmp_path: Path) -> None:
    """One would be rounded to the other's: config.json does not tell them apart."""
    for name in ("baseline", "reinforced"):
        shutil.copytree(tiny, tmp_path / "pair" / name)
    place = tmp_path / "pair/reinforced/model.safetensors"
    stored = {name: tensor.half() for name, tensor in load_file(place).items()}
    save_file(stored, place, {"format": "pt"})
    write_ensemble(tmp_path / "pair", WHP)
    with pytest.raises(CheckpointError, match=r"are stored as fp16 and fp32; save all in one"):
        open_source(str(tmp_path / "pair"), LoadOptions())


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (WHP, "whp.json"),
        (TOY, "ensemble.json"),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, facts: EnsembleFacts, name: str) -> None:
    assert find_ensemble(str(tmp_path)) is None
    write_ensemble(tmp_path, facts)
    assert find_ensemble(str(tmp_path)) == tmp_path / name
    assert read_ensemble(tmp_path / name) == facts


@pytest.mark.parametrize("model", ["~nobody-of-this-name/x", "a\0b", "x" * 5000, "org/name"])
def test_what_is_no_path_is_no_ensemble(model: str) -> None:
    assert find_ensemble(model) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 2}, "format_version: Input should be 1"),
        ({"more": 1}, "more: Extra inputs are not permitted"),
        ({"models": "ab"}, "models: Input should be a valid tuple"),
        ({"models": []}, "models: .* at least 1"),
        ({"models": [f"m{n}" for n in range(64)]}, "models: .* at most 63"),
        ({"models": ["a", "../b"]}, r"models\.1: String should match"),
        ({"models": ["a", ""]}, r"models\.1: String should match"),
        ({"models": ["a", "b\n"]}, r"models\.1: String should match"),
        ({"models": [["a"], {}]}, r"models\.0: Input should be a valid string"),
        ({"method": "../evil"}, "method: String should match"),
        ({"method": 3}, "method: Input should be a valid string"),
        ({"models": ["a", "a"]}, "models: names one model twice"),
        ({"numbers": []}, "numbers: Input should be a valid dictionary"),
        ({"numbers": {f"n{n}": 1 for n in range(65)}}, "numbers: .* at most 64"),
        ({"numbers": {"n\x1b[2J": "1"}}, r"n\\x1b\[2J: Input should be a valid number"),
        ({"numbers": {"n": True}}, r"numbers\.n: Input should be a valid number"),
        ({"numbers": {"n": float("nan")}}, r"numbers\.n: Input should be a finite number"),
        ({"numbers": {"n": 10**400}}, r"numbers\.n: Input should be a valid number"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    content = {"format_version": 1, "method": "toy", "models": ["a", "b"], "numbers": {"n": 1}}
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=said):
        read_ensemble(path)
