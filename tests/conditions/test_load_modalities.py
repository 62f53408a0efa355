"""Models that take images or sound too: what text passes through is measured, nothing else."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from tests.conditions.helpers import TEXTS, load, require_library, scores
from tests.conditions.quantize.test_quantize_references import rtn
from tests.conftest import make_tokenizer
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.limits import auto_class, empty_model
from unlearnbench.checkpoints.load import left_alone, linear_layers, matrices
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.weights import open_weights
from unlearnbench.errors import PrecisionError

_TEXT: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_HEADS = {**_TEXT, "head_dim": 16}
_GEMMA = {**_HEADS, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
_CROSS = {**_TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]}
_ROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
_FUYU = {k: _TEXT[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers")}
_SEES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
_TILES = {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 64}
_HEARS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_blocks": 1,
    "num_attention_heads": 2,
    "ext_pw_out_channel": 32,
    "nemo_conv_channels": 32,
    "audio_token_id": 293,
}
IMAGE = {"image_token_index": 292}
# Name: (config class, settings, of which modules text passes none).
KINDS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "gemma3": (
        "Gemma3Config",
        {"text_config": _GEMMA, "vision_config": _SEES, "mm_tokens_per_image": 4, **IMAGE},
        {"model.vision_tower", "model.multi_modal_projector"},
    ),
    "gemma4": (
        "Gemma4Config",
        {"text_config": _GEMMA, "vision_config": {**_SEES, "head_dim": 16}},
        {"model.vision_tower", "model.embed_vision"},
    ),
    "llava": (
        "LlavaConfig",
        {"text_config": {**_TEXT, "model_type": "llama"}, "vision_config": _SEES, **IMAGE},
        {"model.vision_tower", "model.multi_modal_projector"},
    ),
    "mistral3": (
        "Mistral3Config",
        {"text_config": {**_HEADS, "model_type": "mistral"}, "vision_config": _SEES, **IMAGE},
        {"model.vision_tower", "model.multi_modal_projector"},
    ),
    "qwen2-vl": (
        "Qwen2VLConfig",
        {
            "text_config": {**_TEXT, "rope_parameters": _ROPE},
            "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
        },
        {"model.visual"},
    ),
    "mllama": (  # the layers that attend to an image pass a text on as it is
        "MllamaConfig",
        {"text_config": _CROSS, "vision_config": {**_SEES, **_TILES}, **IMAGE},
        {"model.layers.1"},
    ),
    "fuyu": (
        "FuyuConfig",
        {**_FUYU, "text_config": {**_TEXT, "model_type": "persimmon"}, "image_size": 28},
        {"model.vision_embed_tokens"},
    ),
    "git": (
        "GitConfig",
        {**_TEXT, "vision_config": _SEES},
        {"git.image_encoder", "git.visual_projection"},
    ),
    "phi4-multimodal": (
        "Phi4MultimodalConfig",
        {**_TEXT, "vision_config": {**_SEES, "crop_size": 28}, "audio_config": _HEARS},
        {"model.embed_tokens_extend"},
    ),
}
QUICKLY = ("gemma3", "llava", "mllama", "phi4-multimodal")
SLOW = (pytest.mark.slow, pytest.mark.ci)
IDS = torch.tensor([[0, 5, 9, 33, 7]])


def config_of(kind: str) -> Any:
    name, settings, _ = KINDS[kind]
    return getattr(transformers, name)(**settings)


def make(kind: str) -> Any:
    """A tiny one with random weights, of the class that its published checkpoints are opened as."""
    torch.manual_seed(0)
    config = config_of(kind)
    return auto_class(config).from_config(config).eval()


@pytest.mark.field(
    "Weights",
    "Gemma 3, Gemma 4, Llava, Mistral 3, Qwen2-VL, Llama 3.2 Vision, Fuyu, GIT, Phi-4 multimodal",
    "run on text; other parts are left alone and not counted",
)
@pytest.mark.parametrize(
    "kind", [k if k in QUICKLY else pytest.param(k, marks=[*SLOW]) for k in KINDS]
)
def test_the_linear_layers_are_those_that_a_text_reaches(kind: str) -> None:
    model, reached = make(kind), set()
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_, name=name: reached.add(name))
    with torch.no_grad():
        model(input_ids=IDS)
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    assert set(linear_layers(model)) == reached - {head}
    assert set(left_alone(model) or ()) == KINDS[kind][2] | {head}
    sizes = {name: model.get_submodule(name).weight.numel() for name in reached - {head}}
    assert matrices(model) == sizes
    empty = empty_model(config_of(kind))
    assert empty is not None
    assert set(linear_layers(empty)) == reached - {head}


def test_a_model_of_text_leaves_that_to_the_library() -> None:
    config = transformers.LlamaConfig(**_TEXT)
    model = transformers.AutoModelForCausalLM.from_config(config)
    assert left_alone(model) is None


def test_a_model_with_an_encoder_of_its_own_is_no_causal_one() -> None:
    known = transformers.Florence2Config()  # which turns images and text into other text
    assert known.is_encoder_decoder
    assert auto_class(known) is transformers.AutoModelForCausalLM


@pytest.fixture(
    scope="module",
    params=["gemma3", *(pytest.param(kind, marks=[*SLOW]) for kind in ("llava", "qwen2-vl"))],
)
def wrapped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("modalities") / str(request.param)
    model = make(request.param)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def opened(wrapped: Path) -> CheckpointSource:
    return open_checkpoint(str(wrapped), LoadOptions())


def plain(folder: Path) -> Any:
    found: Any = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    return found.eval()


def of_text(name: str) -> bool:
    return "language_model" in name or "lm_head" in name


def test_only_text_is_rounded_and_counted(wrapped: Path, opened: CheckpointSource) -> None:
    model, expected = load(opened, "rtn-int4"), plain(wrapped)
    changed = {}
    with torch.no_grad():
        for name, module in expected.named_modules():
            if isinstance(module, nn.Linear) and "language_model" in name:
                codes, step, zero = rtn(module.weight.numpy(), 4, None, False)
                module.weight.copy_(torch.from_numpy(np.asarray((codes - zero) * step)))
                changed[name] = module.weight.numel()
        ours, theirs = model.network(input_ids=IDS).logits, expected(input_ids=IDS).logits
    assert float((ours - theirs).abs().max()) < 1e-4
    rounded = dict(model.network.named_parameters())
    assert all(
        torch.equal(rounded[n], p)
        for n, p in plain(wrapped).named_parameters()
        if n.removesuffix(".weight") not in changed
    )
    proof = model.condition.proof
    assert proof is not None
    assert proof.covered_weights == sum(changed.values())
    text = {n: p.numel() for n, p in expected.named_parameters() if of_text(n)}
    assert proof.total_weights == sum(text.values())
    assert proof.weight_bytes == 4 * (sum(text.values()) - sum(changed.values())) + sum(
        changed[n] // 2 + 4 * expected.get_submodule(n).out_features for n in changed
    )
    assert all(of_text(name) for name in (*proof.uncovered, *proof.covered_modules))


@pytest.mark.parametrize(
    "name",
    [
        *("none", "bf16", "bnb-nf4", "bnb-int8", "prune-magnitude-30"),
        *(pytest.param(n, marks=[*SLOW]) for n in ("hqq-int4-g64", "torchao-int8", "quanto-int8")),
    ],
)
def test_every_condition_leaves_the_rest_alone(
    wrapped: Path, opened: CheckpointSource, name: str
) -> None:
    if "-" in name and not name.startswith("prune"):
        require_library(name)
    model, own = load(opened, name), dict(plain(wrapped).named_parameters())
    for key, tensor in model.network.named_parameters():
        if not of_text(key):
            before = own[key].bfloat16().float() if name == "bf16" else own[key]
            assert torch.equal(tensor, before), key
    proof = model.condition.proof
    assert proof is not None
    parts = (*proof.uncovered, *proof.covered_modules)
    assert all(of_text(part) for part in parts)
    if name == "none":
        with torch.no_grad():
            ids = torch.tensor([make_tokenizer()(TEXTS[3])["input_ids"]])
            logits = plain(wrapped)(input_ids=ids).logits[0].double().log_softmax(-1)
        theirs = logits[range(ids.shape[1] - 1), ids[0, 1:]].numpy()
        np.testing.assert_allclose(scores(model)[TEXTS[3]], theirs, atol=1e-5)


@pytest.mark.field(
    "Weights",
    "models that take images, at gptq, awq, auto-round",
    "refused: made of models of text only",
)
@pytest.mark.parametrize("name", ["gptq-int4-g64", "awq-int4-g64", "auto-round-int4-g64"])
def test_what_is_made_of_text_models_only_says_so(opened: CheckpointSource, name: str) -> None:
    require_library(name)
    with pytest.raises(PrecisionError, match="made of models of text only, and .* takes images"):
        load(opened, name)


def test_inspect_reads_what_text_passes_through(wrapped: Path) -> None:
    expected = plain(wrapped)
    with ExitStack() as stack:
        weights = open_weights(str(wrapped), LoadOptions(), stack)
        names = [n for n in weights.linear if of_text(n)]
        assert len(names) == len(weights.linear) == 14
        for name in names:
            assert torch.equal(weights.read(name), expected.get_parameter(f"{name}.weight"))
