"""GPT-2's Conv1D holds a weight as (in, out): its columns are outputs, which quantizers call rows.

The reference is plain transformers with each Conv1D's weight turned, rounded as a Linear's by a
formula in numpy or by the library's own function, and turned back.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    GPT2LMHeadModel,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from transformers.pytorch_utils import Conv1D

from tests.conditions.helpers import TEXTS, Floats, load, require_library
from tests.conditions.quantize.test_quantize_references import rtn
from tests.conftest import MakeCheckpoint, make_tokenizer
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import PrecisionError

SIZE: dict[str, Any] = {
    "vocab_size": 300,
    "n_embd": 64,
    "n_layer": 1,
    "n_head": 4,
    "initializer_range": 0.2,
}
LAYERS = 4  # c_attn, c_proj, c_fc, c_proj
WEIGHTS = 64 * 192 + 64 * 64 + 2 * 64 * 256


@pytest.fixture(scope="module", params=["gpt2", "openai-gpt"])
def transposed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("conv1d") / str(request.param)
    torch.manual_seed(5)
    model: Any = (
        GPT2LMHeadModel(GPT2Config(**SIZE, bos_token_id=0, eos_token_id=1))
        if request.param == "gpt2"
        else OpenAIGPTLMHeadModel(OpenAIGPTConfig(**SIZE))
    )
    with torch.no_grad():
        for module in list[Any](model.modules()):
            if isinstance(module, Conv1D):  # outputs of unlike sizes, so that their steps differ
                module.weight.mul_(torch.linspace(0.5, 2.0, module.nf))
                module.bias.normal_()
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opened(transposed: Path) -> CheckpointSource:
    return open_checkpoint(str(transposed), LoadOptions())


def by_rtn(weight: Floats, bits: int, group: int | None = None, asym: bool = False) -> Floats:
    codes, step, zero = rtn(weight, bits, group, asym)
    return np.asarray((codes - zero) * step, np.float32)


def by_bnb(weight: Floats, kind: str) -> Floats:
    exact = torch.from_numpy(np.ascontiguousarray(weight))
    packed, state = bitsandbytes.functional.quantize_4bit(exact, blocksize=64, quant_type=kind)
    found: Floats = bitsandbytes.functional.dequantize_4bit(packed, state).numpy()
    return found


def by_gguf(weight: Floats) -> Floats:
    kind = gguf.GGMLQuantizationType.Q4_0
    packed = gguf.quants.quantize(np.ascontiguousarray(weight), kind)
    return np.array(gguf.quants.dequantize(packed, kind), np.float32)


def by_prune(weight: Floats) -> Floats:
    limit = np.sort(np.abs(weight), axis=None)[round(0.3 * weight.size)]
    return np.where(np.abs(weight) < limit, np.float32(0), weight)


ROUNDINGS: dict[str, Callable[[Floats], Floats]] = {
    "none": lambda weight: weight,
    "bf16": lambda weight: torch.from_numpy(weight.copy()).bfloat16().float().numpy(),
    "rtn-int4": lambda weight: by_rtn(weight, 4),
    "rtn-int3-g32-asym": lambda weight: by_rtn(weight, 3, 32, asym=True),
    "bnb-nf4": lambda weight: by_bnb(weight, "nf4"),
    "bnb-fp4": lambda weight: by_bnb(weight, "fp4"),
    "gguf-q4_0": by_gguf,
    "prune-magnitude-30": by_prune,
}


def reference(folder: Path, rounding: Callable[[Floats], Floats], everything: bool = False) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        if everything:
            for tensor in model.state_dict().values():
                tensor.copy_(torch.from_numpy(rounding(tensor.numpy())))
        for module in model.modules():
            if isinstance(module, Conv1D):
                turned = rounding(module.weight.numpy().T)
                module.weight.copy_(torch.from_numpy(np.ascontiguousarray(turned.T)))
    return model


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([make_tokenizer()(TEXTS[3])["input_ids"]])
    with torch.no_grad():
        found: torch.Tensor = model(ids).logits
    return found


@pytest.mark.field(
    "Weights", "GPT-2, OpenAI GPT (Conv1D) at bnb, rtn, gguf, hqq, pruned, noised", "runs"
)
@pytest.mark.parametrize("name", ROUNDINGS)
def test_outputs_are_rounded_as_a_linears(
    transposed: Path, opened: CheckpointSource, name: str
) -> None:
    model = load(opened, name)
    expected = reference(transposed, ROUNDINGS[name], everything=name == "bf16")
    found = logits(model.network)
    assert float((found - logits(expected)).abs().max()) < 2e-5 * float(found.abs().max())
    if name == "none":
        return
    # Rows for columns would be another model.
    other = reference(transposed, lambda weight: ROUNDINGS[name](weight.T).T)
    apart = float((found - logits(other)).abs().max())
    assert name in ("bf16", "prune-magnitude-30") or apart > 0.01
    proof = model.condition.proof
    assert proof is not None
    inside = sum(n for part, n in proof.covered_modules.items() if "lm_head" not in part)
    assert inside == LAYERS
    assert proof.compared_modules >= LAYERS
    if name != "bf16":
        assert proof.covered_weights == WEIGHTS
        assert proof.total_weights == sum(p.numel() for p in expected.parameters())
    kinds = {type(m) for n, m in model.network.named_modules() if n.endswith(("c_fc", "c_attn"))}
    assert kinds == {Conv1D}, "an ordinary checkpoint can be saved"


def test_int8_holds_codes_by_output(transposed: Path, opened: CheckpointSource) -> None:
    model = load(opened, "bnb-int8")
    plain: Any = AutoModelForCausalLM.from_pretrained(transposed)
    name = next(name for name, m in plain.named_modules() if isinstance(m, Conv1D))
    weight = plain.get_submodule(name).weight.detach().half().double().numpy().T
    exact = 127 * weight / np.abs(weight).max(axis=1, keepdims=True)
    layer: Any = model.network.get_submodule(name)
    codes = layer.weight.data.numpy()
    assert codes.shape == exact.shape
    assert np.abs(codes - exact).max() <= 0.51
    rounded = reference(transposed, lambda w: by_rtn(w, 8))  # of activations it does not know
    found, near = logits(model.network), logits(rounded)
    assert float((found - near).abs().max()) < 0.1 * float(near.std())


@pytest.mark.parametrize("name", ["hqq-int4-g64", "noise-5"])
def test_others_go_the_same_way(opened: CheckpointSource, name: str) -> None:
    if not name.startswith("noise"):
        require_library(name)
    proof = load(opened, name).condition.proof
    assert proof is not None
    assert proof.covered_weights == WEIGHTS
    assert 0.03 < (proof.relative_error or 0) < 0.15


def test_the_packed_weights_answer_as_the_dense_ones(opened: CheckpointSource) -> None:
    native, dense = load(opened, "bnb-nf4", "native"), load(opened, "bnb-nf4")
    one, two = logits(native.network), logits(dense.network)
    # Some CPUs' own kernel computes in bf16.
    assert float((one - two).abs().max()) < 0.05 * float(two.std())


@pytest.mark.field(
    "Weights",
    "GPT-2, OpenAI GPT at gptq, awq, auto-round, quanto, torchao",
    "refused: these pass Conv1D over",
)
@pytest.mark.parametrize(
    "name",
    ["quanto-int8", "torchao-int8", "gptq-int4-g64", "awq-int4-g64", "auto-round-int4-g64"],
)
def test_a_library_that_passes_over_it_is_refused(opened: CheckpointSource, name: str) -> None:
    require_library(name)
    with pytest.raises(PrecisionError, match=r"quantizes torch's Linear only, and .* is a Conv1D"):
        load(opened, name)


def test_a_stored_one_runs(transposed: Path, tmp_path: Path) -> None:
    """As saved by transformers itself, quantized by bitsandbytes."""
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    saved: Any = AutoModelForCausalLM.from_pretrained(
        transposed, quantization_config=config, device_map={"": "cpu"}, dtype=torch.float32
    )
    saved.save_pretrained(tmp_path / "packed")
    make_tokenizer().save_pretrained(tmp_path / "packed")
    source = open_checkpoint(str(tmp_path / "packed"), LoadOptions())
    model = load(source, "none")
    expected = logits(reference(transposed, ROUNDINGS["bnb-nf4"]))
    assert float((logits(model.network) - expected).abs().max()) < 0.05 * float(expected.std())
    proof = model.condition.proof
    assert proof is not None
    assert (proof.codes, proof.covered_weights) == (16, WEIGHTS)


def test_a_llama_keeps_its_linear(make_checkpoint: MakeCheckpoint) -> None:
    source = open_checkpoint(str(make_checkpoint()), LoadOptions())
    kinds = {type(m) for n, m in load(source, "bnb-nf4").network.named_modules() if "proj" in n}
    assert kinds == {torch.nn.Linear}
