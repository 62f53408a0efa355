"""WHP's two checkpoints: their logits, and that they are measured as one model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import unlearnbench
from tests.cli.test_main import call
from tests.conditions.quantize.helpers import require_library
from tests.conftest import CORPUS, MakeCheckpoint, Toy, make_model, make_tokenizer, write_jsonl
from unlearnbench.checkpoints.ensemble import EnsembleFacts, read_ensemble, write_ensemble
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import _require_loadable
from unlearnbench.errors import CheckpointError, PrecisionError
from unlearnbench.methods import combine_rule
from unlearnbench.models.joined import JoinedModel
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.options import TrainOptions

IDS = torch.tensor([[0, 5, 9, 30, 7], [0, 8, 8, 2, 40]])


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    size = len(make_tokenizer())
    first, second = make_model(size, 0), make_model(size, 0)
    with torch.no_grad():  # the second is surer of the same words, as a reinforced model is
        second.get_output_embeddings().weight *= 1.5
    return first.eval(), second.eval()


def test_logits_are_the_formula(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        v_b, v_r = (model(IDS).logits.double().numpy() for model in models)
        found = JoinedModel(models, combine_rule("whp", {"alpha": 1.5}))(
            input_ids=IDS
        ).logits.numpy()
    assert np.abs(found - (v_b - 1.5 * np.maximum(v_r - v_b, 0))).max() < 1e-5


def test_alpha_0_is_the_baseline(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        joined = JoinedModel(models, combine_rule("whp", {"alpha": 0.0}))
        assert torch.equal(joined(input_ids=IDS).logits, models[0](IDS).logits)


@pytest.mark.parametrize("alpha", [0.0, 20.0])
def test_generation_with_two_caches_is_that_without(models: tuple[Any, Any], alpha: float) -> None:
    joined: Any = JoinedModel(models, combine_rule("whp", {"alpha": alpha}))
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    cached = joined.generate(input_ids=IDS, attention_mask=mask, **options)
    again = joined.generate(input_ids=IDS, attention_mask=mask, **options)
    plain = joined.generate(input_ids=IDS, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, plain)
    assert torch.equal(cached, again), "the second cache starts anew with each call"
    other = models[0].generate(input_ids=IDS, attention_mask=mask, **options)
    assert torch.equal(cached, other) == (alpha == 0.0), "alpha counts in every later step"


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
    facts = EnsembleFacts("whp", ("baseline", "reinforced"), {"alpha": 1.0})
    write_ensemble(tmp_path / "pair", facts)
    with pytest.raises(CheckpointError, match="differ in config"):
        open_source(str(tmp_path / "pair"), LoadOptions())


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 2},
        {"models": ["a"]},
        {"models": ["a", "../b"]},
        {"models": ["a", ["b"]]},
        {"models": ["a", "a"]},
        {"models": "ab"},
        {"method": 3},
        {"numbers": [1]},
        {"numbers": {"share": float("inf")}},
        {"more": 1},
    ],
)
def test_a_damaged_ensemble_json_raises(tmp_path: Path, change: dict[str, object]) -> None:
    good = {"format_version": 1, "method": "three", "models": ["a", "b"], "numbers": {"share": 0.5}}
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    assert read_ensemble(path) == EnsembleFacts("three", ("a", "b"), {"share": 0.5})
    path.write_text(json.dumps(good | change), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"ensemble\.json"):
        read_ensemble(path)
