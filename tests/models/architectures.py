"""Tiny models of many kinds, and what transformers itself answers one prompt at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.conftest import CORPUS, make_tokenizer
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Scored
from unlearnbench.results import Condition, ConditionOptions

SHOTS = "".join(CORPUS[:3])
PROMPTS = [SHOTS + CORPUS[n][: 5 + 7 * n] for n in (3, 4, 6, 7, 9, 11)]
MIXED = [CORPUS[n][: 4 + 11 * n] for n in (0, 2, 3, 5, 8, 9)]  # no common beginning to speak of

_COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "initializer_range": 0.3}
_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_UNLIKE = {"head_dim": 8, "global_head_dim": 16, "num_hidden_layers": 3}  # layers that differ
_TYPES = ["full_attention", "sliding_attention", "full_attention"]
_GEMMA4 = {**_LLAMA, **_UNLIKE, "layer_types": _TYPES}
_TUNED = {"no_rope_layers": [1, 0], "attn_temperature_tuning": True, "floor_scale": 24}
_LONGROPE = {
    **_LLAMA,
    "original_max_position_embeddings": 120,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
        "original_max_position_embeddings": 120,
    },
}
_MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.3}
# Name: (config class, settings, whether rows are packed).
KINDS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "llama": ("LlamaConfig", _LLAMA, True),
    "mistral": ("MistralConfig", {**_LLAMA, "sliding_window": 4096}, True),
    "mistral-window": ("MistralConfig", {**_LLAMA, "sliding_window": 24}, False),
    "qwen2": ("Qwen2Config", _LLAMA, True),
    "qwen3": ("Qwen3Config", {**_LLAMA, "head_dim": 8}, True),
    "mixtral": ("MixtralConfig", {**_LLAMA, **_EXPERTS}, True),
    "gemma": ("GemmaConfig", {**_LLAMA, "head_dim": 8}, True),
    "gemma2": ("Gemma2Config", {**_LLAMA, "head_dim": 8, "sliding_window": 4096}, False),
    "gemma3": ("Gemma3TextConfig", {**_LLAMA, "head_dim": 8, "sliding_window": 4096}, True),
    "gemma3-window": ("Gemma3TextConfig", {**_LLAMA, "head_dim": 8, "sliding_window": 24}, False),
    "gemma4": ("Gemma4TextConfig", {**_GEMMA4, "sliding_window": 4096}, True),
    "gemma4-window": ("Gemma4TextConfig", {**_GEMMA4, "sliding_window": 24}, False),
    "neox": ("GPTNeoXConfig", {**_COMMON, "intermediate_size": 48, "initializer_range": 0.3}, True),
    "gpt2": (
        "GPT2Config",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3},
        True,
    ),
    "opt": (
        "OPTConfig",
        {**_COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3},
        True,
    ),
    "phi": ("PhiConfig", {**_COMMON, "intermediate_size": 48, "initializer_range": 0.3}, True),
    "llama4": (
        "Llama4TextConfig",
        {**_LLAMA, **_EXPERTS, **_TUNED, "head_dim": 8, "intermediate_size_mlp": 48},
        False,
    ),
    "phi3-longrope": ("Phi3Config", _LONGROPE, False),  # the prompts have more than 120 tokens
    "rwkv": ("RwkvConfig", {"hidden_size": 32, "num_hidden_layers": 2}, False),
    "cohere": ("CohereConfig", _LLAMA, True),
    "granite": ("GraniteConfig", {**_LLAMA, "logits_scaling": 3.0}, True),
    "olmo2": ("Olmo2Config", _LLAMA, True),
    "gpt-oss": ("GptOssConfig", {**_LLAMA, **_EXPERTS, "head_dim": 8}, False),
    "falcon": ("FalconConfig", {**_COMMON, "initializer_range": 0.3}, False),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, False),
    "mpt": (
        "MptConfig",
        {"d_model": 32, "n_layers": 2, "n_heads": 4, "initializer_range": 0.3},
        False,
    ),
    "mamba": ("MambaConfig", _MAMBA, False),
}


def make_kind(name: str) -> Any:
    """A tiny model with random weights that vary enough for its texts to do so."""
    import torch
    import transformers

    family, settings, _ = KINDS[name]
    torch.manual_seed(3)
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, family)(vocab_size=300, **ends, **settings)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


class Given:
    """A source for a model that is not in a file."""

    def __init__(self, model: Any, truncate_left: bool = False) -> None:
        self.tokenizer = make_tokenizer()
        self.config, self.checkpoint = model.config, None
        self.options = LoadOptions(truncate_left=truncate_left)


def wrap(model: Any, batch: int | None = None) -> HFModel:
    """``model`` as this package runs it."""
    options = ConditionOptions(bits=32, scheme="as it is", backend="torch")
    condition = Condition(name="none", kind="stored", options=options)
    given: Any = Given(model)
    return HFModel(model, given, condition, "fp32", "cpu", batch)


def alone(model: Any, prompt: str, new: int) -> list[int]:
    """The greedy continuation of one prompt, by transformers alone, up to the end token."""
    inputs = make_tokenizer()(prompt, return_tensors="pt", return_token_type_ids=False)
    output = model.generate(**inputs, max_new_tokens=new, do_sample=False, pad_token_id=1)
    row: list[int] = output[0, inputs.input_ids.shape[1] :].tolist()
    return row[: row.index(1)] if 1 in row else row


def texts(model: HFModel, prompts: Sequence[str], new: int = 20, *stop: str) -> dict[str, str]:
    return {a.id: a.text for a in model.generate([Generate(p, p, new, stop) for p in prompts])}


def decoded(rows: dict[str, list[int]], prompts: Sequence[str]) -> dict[str, str]:
    tokenizer = make_tokenizer()
    return {p: str(tokenizer.decode(rows[p], skip_special_tokens=True)) for p in prompts}


def by_loop(model: Any, text: str) -> list[tuple[float, float, float]]:
    """Own, mean and spread of log p of every token, in float64, a token at a time."""
    import torch

    ids = make_tokenizer()(text).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0].double()
    found = []
    for t in range(1, len(ids)):
        logp = logits[t - 1] - logits[t - 1].exp().sum().log()
        mean = float((logp.exp() * logp).sum())
        spread = float((logp.exp() * (logp - mean) ** 2).sum().sqrt())
        found.append((float(logp[ids[t]]), mean, spread))
    return found


def figures(answer: Scored) -> np.ndarray[Any, Any]:
    return np.stack([answer.logprobs, answer.mean, answer.std], axis=1)
