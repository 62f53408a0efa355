"""WHP's two models: their logits, and generation with two caches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_model, make_tokenizer
from unlearnbench.methods import combine_rule
from unlearnbench.models.joined import JoinedModel

IDS = torch.tensor([[0, 5, 9, 30, 7], [0, 8, 8, 2, 40]])


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    size = len(make_tokenizer())
    first, second = make_model(size, 0), make_model(size, 0)
    with torch.no_grad():  # the second is surer of the same words, as a reinforced model is
        second.get_output_embeddings().weight *= 1.5
    return first.eval(), second.eval()


def test_logits_are_the_formula(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        v_b, v_r = (model(IDS).logits.double().numpy() for model in models)
        rule = combine_rule("whp", {"alpha": 1.5})
        found = JoinedModel(models, rule)(input_ids=IDS).logits.numpy()
    assert np.abs(found - (v_b - 1.5 * np.maximum(v_r - v_b, 0))).max() < 1e-5


def test_alpha_0_is_the_baseline(models: tuple[Any, Any]) -> None:
    with torch.no_grad():
        joined = JoinedModel(models, combine_rule("whp", {"alpha": 0.0}))
        assert torch.equal(joined(input_ids=IDS).logits, models[0](IDS).logits)


@pytest.mark.parametrize("alpha", [0.0, 20.0])
def test_generation_with_two_caches_is_that_without(models: tuple[Any, Any], alpha: float) -> None:
    joined: Any = JoinedModel(models, combine_rule("whp", {"alpha": alpha}))
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    cached = joined.generate(input_ids=IDS, attention_mask=mask, **options)
    again = joined.generate(input_ids=IDS, attention_mask=mask, **options)
    plain = joined.generate(input_ids=IDS, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, plain)
    assert torch.equal(cached, again), "the second cache starts anew with each call"
    other = models[0].generate(input_ids=IDS, attention_mask=mask, **options)
    assert torch.equal(cached, other) == (alpha == 0.0), "alpha counts in every later step"
