"""GGUF files as llama.cpp's tools make them of a Llama's checkpoint: its own library writes the
blocks, gguf-py the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import load_file

from unlearnbench.conditions.quantize import blocks, recipes

PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
WHOLE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def gguf_name(name: str) -> str:
    if name in WHOLE:
        return WHOLE[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{PARTS[part.removesuffix('.weight')]}.weight"


def interleave(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """The order of rows in which llama.cpp keeps queries and keys."""
    rows = weight.shape[0]
    halves = weight.reshape(heads, 2, rows // heads // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))


def file_kinds(folder: Path, file: str) -> dict[str, str]:
    """The type of every matrix in a file of llama.cpp's, as Q4_K_M or Q8_0."""
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    linear = {n.removesuffix(".weight"): t for n, t in weights.items() if "_proj" in n}
    if file not in recipes.FILES:
        return {**dict.fromkeys(weights, file)}
    kinds = recipes.types(file, list(linear), config)
    found = {f"{n}.weight": recipes.fitting(kinds[n], t.shape[1]) for n, t in linear.items()}
    embedding = weights["model.embed_tokens.weight"]
    head = recipes.fitting("Q6_K", embedding.shape[1])
    return {**found, "model.embed_tokens.weight": head, "lm_head.weight": head}


def write_gguf(
    folder: Path,
    path: Path,
    file: str = "Q4_K_M",
    *,
    importance: Mapping[str, np.ndarray[Any, Any]] | None = None,
    metadata: Mapping[str, Any] | None = None,
    words: Mapping[int, str] | None = None,
    split: int = 0,
    rule: str = "gpt-2",
) -> Path:
    """Write a checkpoint folder as a file of that name. importance: of a matrix, by its name;
    metadata: numbers in place of the config's; words: tokens in place of the tokenizer's; split:
    tensors of a part; rule: by which texts are split, of which only GPT-2's here begins with the
    begin token. Returns the path, or that of the first part.
    """
    config = json.loads((folder / "config.json").read_text()) | dict(metadata or {})
    writer = gguf.GGUFWriter(str(path), "llama", split_max_tensors=split)
    writer.add_file_type(int(getattr(gguf.LlamaFileType, f"MOSTLY_{file}")))
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    add_rope(writer, config)
    writer.add_vocab_size(config["vocab_size"])
    _add_tokenizer(writer, folder, words or {}, rule)
    if importance is not None:
        writer.add_string("quantize.imatrix.file", "imatrix.gguf")
    kinds = file_kinds(folder, file)
    for name, tensor in load_file(folder / "model.safetensors").items():
        weight = tensor.to(torch.float32).numpy()
        if "q_proj" in name:
            weight = interleave(weight, config["num_attention_heads"])
        if "k_proj" in name:
            weight = interleave(weight, config["num_key_value_heads"])
        if weight.ndim == 1:
            writer.add_tensor(gguf_name(name), weight)
            continue
        kind = kinds[name]
        weighed = None if importance is None else importance.get(name)
        packed = blocks.quantize(kind, weight, weighed)
        writer.add_tensor(
            gguf_name(name), packed, raw_dtype=getattr(gguf.GGMLQuantizationType, kind)
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return next(iter(sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))), path)


def add_rope(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """As llama.cpp's converter does: Llama 3.1's scaling is a table, others are numbers."""
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = config["rope_parameters"]
    writer.add_rope_freq_base(rope["rope_theta"])
    kind = rope.get("rope_type", "default")
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if kind == "llama3":
        made = LlamaConfig(**config)
        turned = ROPE_INIT_FUNCTIONS["llama3"](made, torch.device("cpu"))[0]
        width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        plain = 1.0 / rope["rope_theta"] ** (torch.arange(0, width, 2).float() / width)
        writer.add_tensor("rope_freqs.weight", (plain / turned).numpy())


def _add_tokenizer(
    writer: gguf.GGUFWriter, folder: Path, words: Mapping[int, str], rule: str
) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    added = {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    vocab = tokenizer["model"]["vocab"] | added
    tokens = sorted(vocab, key=vocab.__getitem__)
    tokens = [words.get(n, token) for n, token in enumerate(tokens)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in added else 1 for token in tokens])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(rule == "gpt-2")
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
