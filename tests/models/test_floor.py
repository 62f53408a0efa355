"""Operations that cannot be left out, against torch's own counter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from tests.conftest import make_model
from unlearnbench.models.floor import forward_flops, generating_flops, matmul_peak
from unlearnbench.requests import Generate


def counted(model: Any, length: int, keep: int = 0) -> float:
    """What a pass over one text takes: products as torch counts them, and in each of two layers of
    width 64 two products of all tokens with all tokens, of which half are masked.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(length)[None], use_cache=False, logits_to_keep=keep)
    by_name = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    products = sum(count for op, count in by_name.items() if op in ("aten.mm", "aten.addmm"))
    return float(products + 2 * 2 * (2 * length * length * 64) / 2)


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(300)


def test_a_pass_over_texts(model: Any) -> None:
    assert forward_flops(model, [5, 17]) == counted(model, 5) + counted(model, 17)


def test_gpt2s_layers_are_counted() -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 32,
    }
    made = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    assert forward_flops(made, [17]) == counted(made, 17)


def test_answers_behind_a_common_beginning(model: Any) -> None:
    """Of two prompts of 20 and 22 tokens that share 18, one ends at a stop string."""
    first, second = [*range(18), 30, 31], [*range(18), 40, 41, 42, 43]
    asked = [Generate("a", "", 4), Generate("b", "", 9, stop=("x",))]
    found = generating_flops(model, [first, second], asked)
    weights = 300 * 64  # of the head
    whole = counted(model, 23, 4) + counted(model, 22, 1)
    once = counted(model, 18) - 2 * weights * 18
    assert found == whole - once


def test_the_peak_is_no_less_than_a_product_reaches() -> None:
    assert matmul_peak(torch.float32, "cpu") > 1e8
