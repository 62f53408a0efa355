"""What no evaluation can do without: the operations of a model's dense products and of attention,
and the seconds that they take at the machine's own peak.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from unlearnbench.requests import Generate


def forward_flops(model: Any, lengths: Sequence[int]) -> float:
    """Operations of one forward pass over texts of so many tokens: two for each weight of a linear
    layer (GPT-2's Conv1D is one) and token, and causal attention's two products. Padding is not
    counted: it is waste.
    """
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Linear)]
    weights = sum(each.out_features * each.in_features for each in layers)
    weights += sum(each.nx * each.nf for each in model.modules() if isinstance(each, Conv1D))
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0
    width = heads and heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    attention = sum(2 * config.num_hidden_layers * width * n * n for n in lengths)
    return float(2 * weights * sum(lengths) + attention)


def generating_flops(model: Any, ids: Sequence[Sequence[int]], asked: Sequence[Generate]) -> float:
    """Operations of answering all prompts: what all begin with is run once, logits are needed
    after a prompt's last token only, and an answer is as long as it may be, or one token where a
    stop string may end it.
    """
    shared = sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, zip(*ids, strict=False)))
    new = [1 if request.stop else request.max_new_tokens for request in asked]
    lengths = [len(row) + more - 1 for row, more in zip(ids, new, strict=True)]
    head = 2.0 * int(model.get_output_embeddings().weight.numel())
    without_logits = sum(len(row) - 1 for row in ids)
    flops = forward_flops(model, lengths) - head * without_logits
    once = forward_flops(model, [shared]) - head * shared
    return flops - once * (len(ids) - 1)


def matmul_peak(dtype: torch.dtype, device: str) -> float:
    """The most floating-point operations a second that square matrix products reach here."""
    best = 0.0
    for size in (1024, 2048) if device == "cpu" else (4096, 8192):
        a = torch.ones(size, size, device=device, dtype=dtype)
        for _ in range(6):
            start = _clock(device)
            torch.mm(a, a)
            best = max(best, 2 * size**3 / (_clock(device) - start))
    return best


def _clock(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()
