"""SISA's answer: the mean of the shards' probabilities, also while they generate."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.conftest import make_model
from unlearnbench.methods import combine_rule
from unlearnbench.methods.whole.sisa import combine
from unlearnbench.models.joined import JoinedModel

IDS = torch.tensor([[0, 5, 9, 30, 7], [0, 8, 8, 2, 31]])


def test_it_is_the_log_of_the_mean_of_probabilities() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 2, 5, 7)) * [[[[1.0]]], [[[30.0]]], [[[300.0]]]]
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    expected = (shifted / shifted.sum(-1, keepdims=True)).mean(0)
    found = combine([torch.tensor(each) for each in logits], {})
    assert found.dtype == torch.float64
    assert np.abs(found.exp().numpy() - expected).max() < 1e-14
    assert np.abs(found.exp().sum(-1).numpy() - 1).max() < 1e-14
    assert bool(found.isfinite().all()), "no probability is so small that its log is lost"
    turned = combine([torch.tensor(each) for each in logits[::-1].copy()], {})
    assert torch.allclose(found, turned, atol=1e-12), "whatever the order of the shards"
    narrow = combine([torch.tensor(each).bfloat16() for each in logits], {})
    assert narrow.dtype == torch.float32


def test_equal_models_are_the_model_and_others_answer_together() -> None:
    first, second = make_model(40, 0).eval(), make_model(40, 1).eval()
    with torch.no_grad():
        alone = first(IDS).logits.log_softmax(-1)
        for count in (1, 2, 3):
            found = JoinedModel([first] * count, combine_rule("sisa", {}))(input_ids=IDS).logits
            assert torch.allclose(found, alone, atol=1e-6)
    joined: Any = JoinedModel([first, second], combine_rule("sisa", {}))
    mask = torch.ones_like(IDS)
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    cached = joined.generate(input_ids=IDS, attention_mask=mask, **asked)
    ids = IDS
    with torch.no_grad():  # plain transformers, in double precision
        for _ in range(8):
            both = [model(ids).logits[:, -1].double().softmax(-1) for model in (first, second)]
            ids = torch.cat([ids, (both[0] + both[1]).argmax(-1, keepdim=True)], dim=1)
    assert torch.equal(cached, ids)
