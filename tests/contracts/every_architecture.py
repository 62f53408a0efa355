"""Each causal language model that transformers has, made tiny, saved, opened by us and compared
with plain transformers in fp32, one prompt at a time.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.conftest import CORPUS, load_at, make_tokenizer
from tests.models.architectures import by_loop, figures
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import UnlearnbenchError, one_line
from unlearnbench.requests import Generate, Score

PROMPTS = [CORPUS[n][: 9 + 17 * n] for n in (2, 0, 5, 1)]
TEXTS = [CORPUS[n][: 30 + 20 * n] for n in (0, 1, 3)]
_NEW = 12

# A setting's name, and what it becomes where its default is larger.
_SMALL = [
    (r"^(unpadded_)?vocab_size(_per_layer_input)?$|^encoder_hash_byte_group_vocab$", 320),
    (r"^(num_hidden_layers|num_layers|n_layers?|num_blocks|num_layers_per_stack)$", 2),
    (r"^(num_)?(en|de)coder_layers$", 2),
    (r"^(num_|swa_num_|num_encoder_|num_decoder_|(en|de)coder_)?attention_heads$", 4),
    (r"^(n_heads?|num_heads)$", 4),
    (r"(num_key_value_heads|num_kv_heads|num_query_groups)$", 2),
    (r"^qk_head_dim$", 16),
    (r"head_dim$|^dim_head$", 8),
    (r"intermediate_size|ffn_dim|ffn_hidden_size|d_inner|n_inner|d_ff|inner_dim|dim_ff", 48),
    (
        r"^(hidden_size|n_embd|d_model|hidden_dim|embedding_size|emb_dim|dim|word_embed_proj_dim)$",
        32,
    ),
    (r"^(output_embedding_size|attention_hidden_size|input_embedding_size|.*embed_dim)$", 32),
    (r"(num_experts|num_local_experts|n_routed_experts)$", 4),
    (r"(experts_per_tok(en)?|topk|moe_k|top_k)$", 2),
    (r"(n_group|num_expert_group|topk_group)$", 1),
    (r"lora_rank$", 8),
]
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_TYPES = ["sliding_attention", "full_attention"]
_LINEAR = ["linear_attention", "full_attention"]
_HYBRID = ["linear_attention", "hybrid"]
_MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16}
_ZAMBA = {"layers_block_type": _HYBRID, "attention_hidden_size": 64, "attention_head_dim": 16}
_ZAMBA |= {"num_key_value_heads": 4}
_GEMMA3N = {"intermediate_size": [48, 48], "activation_sparsity_pattern": [0.0, 0.0]}
_GEMMA3N |= {"num_kv_shared_layers": 0, "layer_types": _TYPES}
# By model type: what its settings must be beside being small.
_MORE: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_types": _LINEAR},
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": _TYPES, "rope_parameters": dict.fromkeys(_TYPES, _ROPE)},
    "dbrx": {
        "attn_config": {"clip_qkv": 8.0, "kv_n_heads": 2, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "axk1": {"n_group": 1, "topk_group": 1},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {"num_key_value_heads": 4, "per_layer_config": {}},
    "gemma3n_text": _GEMMA3N,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_MAMBA, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": _LINEAR},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 16},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5_moe_text": {"layer_types": _LINEAR},
    "qwen3_5_text": {"layer_types": _LINEAR},
    "qwen3_next": {"layer_types": _LINEAR},
    "qwen4_exp_text": {"layer_types": _LINEAR},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "zamba": {
        **_ZAMBA,
        "num_hidden_layers": 4,
        "mamba_dt_rank": 4,
        "layers_block_type": _HYBRID * 2,
    },
    "zamba2": {**_ZAMBA, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_d_state": 16},
}


def architectures() -> dict[str, str]:
    """The class of each model type that transformers loads as a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(kind: Any) -> Any:
    """A config of class ``kind`` with small sizes, in its parts too."""
    own = _MORE.get(kind.model_type, {})
    plain = kind()
    given: dict[str, Any] = {}
    for name, value in plain.to_dict().items():
        fits = (small for pattern, small in _SMALL if re.search(pattern, name))
        small = next(fits, 1 if name.endswith("token_id") else None)
        if type(value) is int and small is not None and value > max(small, 319 * (small == 1)):
            given[name] = small
        elif name in _ENDS:
            given[name] = _ENDS[name]
    asked = {"initializer_range": 0.3, "is_decoder": True}  # a BERT is one on request
    given |= {name: value for name, value in asked.items() if hasattr(plain, name)}
    for name in kind.sub_configs or {}:
        part = getattr(plain, name, None)
        if part is not None and name not in own:
            given[name] = tiny_config(type(part))
    if "kv_lora_rank" in given and "num_key_value_heads" in given:
        given["num_key_value_heads"] = 4
    return kind(**(given | own))


def save_tiny(name: str, folder: Path) -> None:
    """A checkpoint of model type ``name`` with random weights; whatever transformers raises."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(tiny_config(CONFIG_MAPPING[name]))
    size = sum(parameter.numel() for parameter in model.parameters())
    assert size < 4e6, f"{size:,} weights"
    model.float().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@contextmanager
def explained() -> Iterator[list[str]]:
    """What ``--explain`` says inside the block."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("unlearnbench.explain")
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield said
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def plain_answers(folder: Path) -> tuple[list[str], list[Any], float]:
    """Continuations, figures of texts, and how far later tokens move the logits of earlier ones,
    by transformers alone, a prompt at a time.
    """
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = make_tokenizer()
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    # A checkpoint's own settings, as Bart's forced end, are left out by us too.
    model.generation_config = GenerationConfig(do_sample=False, eos_token_id=1, pad_token_id=1)
    scored = [np.array(by_loop(model, text)) for text in TEXTS]
    ids = tokenizer(TEXTS[2], return_tensors="pt").input_ids
    with torch.no_grad():
        whole, part = model(ids).logits, model(ids[:, :-9]).logits
    moved = float((whole[:, : part.shape[1]] - part).abs().max() / whole.std())
    texts = []
    for prompt in PROMPTS:
        given = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            out = model.generate(**given, max_new_tokens=_NEW)
        new = out[0, given.input_ids.shape[1] :]
        texts.append(str(tokenizer.decode(new, skip_special_tokens=True)))
    return texts, scored, moved


def our_answers(folder: Path) -> tuple[list[str], list[Any], list[str]]:
    """The same by us, and what --explain says."""
    with explained() as said:
        model = load_at(open_checkpoint(str(folder), LoadOptions()), "none")
        asked = [Generate(str(n), prompt, _NEW) for n, prompt in enumerate(PROMPTS)]
        texts = {answer.id: answer.text for answer in model.generate(asked)}
        drafts = (texts["0"], texts["1"][:5] + " and so on")
        known = [replace(r, drafts=(*drafts, texts[r.id])) for r in asked]
        drafted = {answer.id: answer.text for answer in model.generate(known)}
        assert drafted == texts, "drafts move a text"
        scores = [Score(str(n), text) for n, text in enumerate(TEXTS)]
        scored = {answer.id: figures(answer) for answer in model.score(scores)}
    return [texts[r.id] for r in asked], [scored[r.id] for r in scores], said


def outcome(name: str, folder: Path) -> str:
    """What becomes of model type ``name``; "DIFFERS" or "FAILS" where we are wrong."""
    try:
        save_tiny(name, folder)
    except Exception as error:  # any
        return f"not made: {type(error).__name__}: {one_line(error, 120)}"
    try:
        texts, scored, moved = plain_answers(folder)
    except Exception as error:
        return f"transformers cannot: {type(error).__name__}: {one_line(error, 120)}"
    try:
        ours, figured, said = our_answers(folder)
    except UnlearnbenchError as error:
        line = re.sub(r"^(0|none|PATH): ", "", str(error).replace(str(folder), "PATH"))
        return f"refused: {one_line(line, 200)}"
    except Exception as error:
        return f"FAILS: {type(error).__name__}: {one_line(error, 200)}"
    wrong = [f"text {n}" for n, own in enumerate(ours) if own != texts[n]]
    for n, (own, right) in enumerate(zip(figured, scored, strict=True)):
        if own.shape != right.shape or not np.allclose(own, right, rtol=1e-4, atol=1e-4):
            wrong.append(f"scores {n}")
    if not moved < 1e-3:
        wrong.append(f"later tokens move earlier ones by {moved:.2g}")
    if wrong:
        return "DIFFERS: " + ", ".join(wrong)
    how = next(line for line in said if "generation" in line)
    padded = how.partition("through transformers' generate, ")[2]
    return f"runs, {padded}" if padded else "runs"
