"""MXFP4 as gpt-oss stores it: experts of a layer in one tensor, in blocks and scales."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GptOssConfig, GptOssForCausalLM

from tests.conditions.test_deployed import met
from tests.conftest import CORPUS, make_tokenizer
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.load import prepare
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.errors import NotInForceError, PrecisionError, UnlearnbenchError
from unlearnbench.requests import Score

LEVELS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
STACKED = ("gate_up_proj", "down_proj")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny gpt-oss, whose experts hold nearly all weights."""
    folder = tmp_path_factory.mktemp("gpt-oss") / "plain"
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=8,
        num_experts_per_tok=2,
        initializer_range=0.2,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    GptOssForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pack(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Blocks, scales and values of a tensor (experts, in, out): OCP Microscaling 1.0."""
    rows = weight.transpose(1, 2).numpy()
    groups = rows.reshape(*rows.shape[:2], -1, 32)
    exponent = np.floor(np.log2(np.abs(groups).max(-1, keepdims=True))) - 2
    scaled = groups / 2.0**exponent
    codes = np.abs(np.abs(scaled)[..., None] - LEVELS).argmin(-1)
    values = np.sign(scaled) * LEVELS[codes] * 2.0**exponent
    nibbles = (codes + 8 * (scaled < 0)).astype(np.uint8)
    blocks = nibbles[..., ::2] | (nibbles[..., 1::2] << 4)
    scales = (exponent[..., 0] + 127).astype(np.uint8)
    dense = torch.from_numpy(values.reshape(rows.shape).astype(np.float32)).transpose(1, 2)
    return torch.from_numpy(blocks).contiguous(), torch.from_numpy(scales).contiguous(), dense


def save_mxfp4(plain: Path, to: Path, turn: Any = None) -> Path:
    """The folder as gpt-oss is published. turn: changes an expert tensor before."""
    shutil.copytree(plain, to)
    weights = {}
    for name, tensor in load_file(to / "model.safetensors").items():
        if name.endswith(STACKED):
            given = tensor if turn is None else turn(tensor)
            weights[f"{name}_blocks"], weights[f"{name}_scales"], _ = pack(given)
        else:
            weights[name] = tensor
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((to / "config.json").read_text())
    left = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens"]
    config["quantization_config"] = {
        "quant_method": "mxfp4",
        "modules_to_not_convert": [*left, "lm_head"],
    }
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_a_native_folder_is_in_force_and_told_apart(plain: Path, tmp_path: Path) -> None:
    model = met(plain, save_mxfp4(plain, tmp_path / "own"))
    condition, state = model.condition, model.network.state_dict()
    assert condition.name == "deployed:mxfp4"
    for name, tensor in load_file(plain / "model.safetensors").items():
        expected = pack(tensor)[2] if name.endswith(STACKED) else tensor
        torch.testing.assert_close(state[name], expected, rtol=0, atol=0)
    proof = condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["nearest"] > 0.9999
    assert proof.figures["same_plain"] == 1
    assert proof.stored is not None
    assert proof.stored["model.layers.*.mlp.experts.down_proj"] == {"mxfp4": 2}
    assert proof.covered_weights == 2 * 8 * (64 * 256 + 128 * 64)
    assert proof.weights_by_dtype["mxfp4"] == proof.covered_weights
    twin: Any = GptOssForCausalLM.from_pretrained(plain).eval()
    twin.load_state_dict(state)
    (found,) = model.score([Score("a", CORPUS[0][:80])])
    ids = torch.tensor([model.tokens.encode(CORPUS[0][:80])])
    with torch.no_grad():
        every = twin(ids).logits.log_softmax(-1)[0, :-1]
    due = every.gather(1, ids[0, 1:, None])[:, 0].numpy()
    np.testing.assert_allclose(found.logprobs, due, atol=2e-4)


def test_one_of_another_checkpoint_is_refused(plain: Path, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(1)

    def updated(tensor: torch.Tensor) -> torch.Tensor:
        return tensor + 0.02 * tensor.std() * torch.randn(tensor.shape, generator=draw)

    folder = save_mxfp4(plain, tmp_path / "other", updated)
    with pytest.raises(PrecisionError, match=r"% of the model's weights lie nearest to the level"):
        met(plain, folder)
    zeros = save_mxfp4(plain, tmp_path / "zeros", lambda t: t * 1e-3)
    with pytest.raises(PrecisionError, match="was not made from"):
        met(plain, zeros)


def test_it_loads_as_a_checkpoint_of_its_own(plain: Path, tmp_path: Path) -> None:
    folder = save_mxfp4(plain, tmp_path / "own")
    source = open_checkpoint(str(folder), LoadOptions())
    found = prepare(source, find_condition("none"), KernelOptions.of({"dtype": "fp32"}))
    condition = found.load().condition
    assert condition.options.bits == 4
    assert condition.proof is not None
    assert condition.proof.codes is not None
    assert 8 < condition.proof.codes <= 16
    with pytest.raises(PrecisionError, match="is quantized already"):
        prepare(source, find_condition("rtn-int4"), KernelOptions())


def test_blocks_without_a_place_are_refused(plain: Path, tmp_path: Path) -> None:
    folder = save_mxfp4(plain, tmp_path / "own")
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.experts.down_proj"
    for part in ("blocks", "scales"):
        weights[f"{name}x_{part}"] = weights[f"{name}_{part}"].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    source = open_checkpoint(str(folder), LoadOptions())
    with pytest.raises(NotInForceError, match="down_projx, for which the model has no place"):
        prepare(source, find_condition("none"), KernelOptions.of({"dtype": "fp32"})).load()


DOWN = "model.layers.0.mlp.experts.down_proj"
BLOCKS, SCALES = f"{DOWN}_blocks", f"{DOWN}_scales"
WEIGHT = "model.layers.0.self_attn.q_proj.weight"
Change = Callable[[dict[str, torch.Tensor]], object]


def turned(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    return lambda weights: weights.update({name: change(weights[name]).contiguous().clone()})


BROKEN: dict[str, tuple[Change, str]] = {
    "no scales": (lambda w: w.pop(SCALES), r"\(8, 64, 4, 16\) and missing"),
    "no blocks": (lambda w: w.pop(BLOCKS), r"missing and \(8, 64, 4\)"),
    "fewer scales": (turned(SCALES, lambda t: t[..., :-1]), r"and \(8, 64, 3\)"),
    "flat scales": (turned(SCALES, lambda t: t.flatten(1)), r"and \(8, 256\)"),
    "one scale": (turned(SCALES, lambda t: t.flatten()[0]), r"\(8, 64, 4, 16\) and \(\)"),
    "flat blocks": (turned(BLOCKS, lambda t: t.flatten(2)), r"they are \(8, 64, 64\)"),
    "blocks of 8 bytes": (turned(BLOCKS, lambda t: t[..., :8]), r"they are \(8, 64, 4, 8\)"),
    "fewer rows": (turned(BLOCKS, lambda t: t[:, :-1]), r"they are \(8, 63, 4, 16\)"),
    "no experts": (turned(BLOCKS, lambda t: t[:0]), r"they are \(0, 64, 4, 16\)"),
    "floats": (turned(SCALES, lambda t: t.float()), "wants bytes .U8., and .* stored as F32"),
    "signed": (turned(BLOCKS, lambda t: t.view(torch.int8)), "stored as I8"),
    "a scale that is NaN": (turned(SCALES, lambda t: t.clamp(255)), "has NaN or infinite values"),
    "both narrower": (
        lambda w: w.update({n: w[n][:, :-1].contiguous() for n in (BLOCKS, SCALES)}),
        "do not have the shapes that the config asks for",
    ),
    "plain beside": (
        lambda w: w.update({DOWN: torch.zeros(8, 128, 64)}),
        "holds .*down_proj both packed and plain",
    ),
    "of a plain layer": (
        lambda w: w.update(
            {
                f"{WEIGHT}_{n}": w[f"{DOWN}_{n}"]
                for n in ("blocks", "scales")
                if w.pop(WEIGHT, 1) is not None
            }
        ),
        "shapes that the config asks for|no place|cannot be loaded|lacks weights",
    ),
}


@pytest.mark.field(
    "Weights",
    "MXFP4 blocks or scales that are missing, of other shapes or types, or beside plain weights",
    "refused, with what they are",
)
@pytest.mark.parametrize("how", BROKEN)
def test_broken_blocks_are_one_line(plain: Path, tmp_path: Path, how: str) -> None:
    change, said = BROKEN[how]
    folder = save_mxfp4(plain, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(
        {n: t.clone() for n, t in weights.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    source = open_checkpoint(str(folder), LoadOptions())
    with pytest.raises(UnlearnbenchError, match=said) as raised:
        prepare(source, find_condition("none"), KernelOptions.of({"dtype": "fp32"})).load()
    assert "\n" not in str(raised.value)
    with pytest.raises(UnlearnbenchError, match=said):
        met(plain, folder)
