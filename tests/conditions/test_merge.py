from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.checkpoints.test_adapter import make_adapter
from tests.conftest import MakeCheckpoint, Toy, load_at
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition, merge
from unlearnbench.errors import NotInForceError, PrecisionError, ResultError

Weights = dict[str, NDArray[np.float64]]


def opened(path: Path, **options: Any) -> CheckpointSource:
    return open_checkpoint(str(path), LoadOptions.of(options))


@pytest.fixture(scope="module")
def target(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint moved a little, every tensor of it, and some weights not at all."""
    folder, source = tmp_path_factory.mktemp("target"), opened(tiny)
    model = source.model()
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            kept = torch.rand(weight.shape, generator=random) < 0.2
            weight.add_(0.01 * torch.randn(weight.shape, generator=random).masked_fill(kept, 0))
    model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    return folder


def exact(source: CheckpointSource) -> Weights:
    return {name: t.double().numpy() for name, t in source.state_dict().items()}


@pytest.mark.parametrize("share", ["0", "0.25", "0.5", "1"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_merging_is_the_formula(tiny: Path, target: Path, share: str, dtype: str) -> None:
    source, other = opened(tiny), opened(target)
    model = load_at(source, f"merge-{share}", dtype, target=other)
    ours, theirs, a = exact(source), exact(other), float(share)
    for name, weight in model.network.state_dict().items():
        expected = torch.from_numpy((1 - a) * theirs[name] + a * ours[name]).float()
        assert torch.equal(weight, expected.to(weight.dtype)), name
    ends = {"0": other, "1": source}
    if share in ends:  # bit for bit, zeros' signs too
        now, end = model.network.state_dict(), ends[share].state_dict()
        for name, weight in now.items():
            bits = torch.int32 if dtype == "fp32" else torch.int16
            assert torch.equal(weight.view(bits), end[name].to(weight.dtype).view(bits)), name
    proof = model.condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["merge_share"] == pytest.approx(a, abs=1e-4 if dtype == "fp32" else 0.05)
    assert proof.uncovered == {}
    assert proof.on_grid == (share == "1" and dtype == "fp32")
    assert proof.compared_modules == 14
    recorded = model.condition.options.further
    assert recorded == {"share": a, "target_sha256": other.checkpoint.weights_sha256}


def test_an_adapter_is_scaled_in_its_base(tiny: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = make_adapter(tiny, tmp_path / "lora")
    source = opened(folder, base=str(tiny))
    base, whole = AutoModelForCausalLM.from_pretrained(tiny), opened(tiny)
    adapted: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder)
    for share in (0.0, 0.5):
        model = load_at(source, f"merge-{share}")
        for name, weight in model.network.state_dict().items():
            expected = base.state_dict()[name].double()
            module = name.removesuffix(".weight")
            layer: Any = dict(adapted.base_model.model.named_modules()).get(module)
            if hasattr(layer, "lora_A"):
                b, a = (getattr(layer, part)["default"].weight for part in ("lora_B", "lora_A"))
                expected += share * layer.scaling["default"] * (b.double() @ a.double())
            assert (weight.double() - expected).abs().max() < 1e-6, name
        hashed = model.condition.options.further["target_sha256"]
        assert hashed == whole.checkpoint.weights_sha256
    kept = opened(folder, base=str(tiny), adapter="keep")
    with pytest.raises(PrecisionError, match="use --adapter merge"):
        load_at(kept, "merge-0.5")


def test_the_name(tiny: Path) -> None:
    assert find_condition("merge-0.50").name == "merge-0.5"
    for wrong in ("merge-1.1", "merge-2"):
        with pytest.raises(PrecisionError, match="from 0, the target, to 1"):
            find_condition(wrong)
    for wrong in ("merge-", "merge-a", "merge--1"):
        with pytest.raises(PrecisionError, match="unknown condition"):
            find_condition(wrong)


def test_a_target_that_does_not_fit_is_refused(
    tiny: Path, target: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(PrecisionError, match="needs the target; give --target-model"):
        load_at(opened(tiny), "merge-0.5")
    with pytest.raises(PrecisionError, match="has shape .* is --target-model what it came from"):
        load_at(opened(tiny), "merge-0.5", target=opened(make_checkpoint("w", hidden_size=128)))
    other = make_checkpoint("other")
    file = other / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = content["model"]["vocab"]
    words["a"], words["e"] = words["e"], words["a"]
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(PrecisionError, match="has another tokenizer"):
        load_at(opened(tiny), "merge-0.5", target=opened(other))


def test_what_is_not_merged_as_asked_is_refused(
    tiny: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mix = merge.mix
    for wrong in (
        lambda theirs, own, share: own,
        lambda theirs, own, share: mix(theirs, own, 0.6),
        lambda theirs, own, share: 1.001 * mix(theirs, own, share),
        lambda theirs, own, share: mix(theirs, own, share if own.dim() > 1 else 1.0),  # norms left
    ):
        monkeypatch.setattr(merge, "mix", wrong)
        with pytest.raises(NotInForceError, match="between both models"):
            load_at(opened(tiny), "merge-0.5", target=opened(target))


def test_a_run_with_another_target_is_another_run(tiny: Path, target: Path, toy: Toy) -> None:
    (first,) = evaluate(
        str(tiny), "toy_verbmem", "merge-0.5", target_model=str(target), **toy.options
    )
    assert first.condition.kind == "merged"
    (again,) = evaluate(
        str(tiny), "toy_verbmem", "merge-0.5", target_model=str(target), **toy.options
    )
    assert again == first
    with pytest.raises(ResultError, match="option target_sha256 is"):
        evaluate(str(tiny), "toy_verbmem", "merge-0.5", target_model=str(tiny), **toy.options)
