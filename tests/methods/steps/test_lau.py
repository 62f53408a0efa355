"""The attack on hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import make_model
from tests.training.helpers import go, same, weights
from unlearnbench.errors import OptionError
from unlearnbench.methods.places import blocks, hooked
from unlearnbench.methods.rows import Batch, Example, token_logprobs
from unlearnbench.methods.steps.lau import LauOptions, attack, attacked
from unlearnbench.training.batches import as_batch, collate, sums_of
from unlearnbench.training.job import Job

ROWS = [((0, 5, 9, 30, 7),) * 2, ((0, 8, 2), (-100, -100, 2))]


def batch_of(rows: list[Any]) -> Batch:
    items: list[Any] = [{"forget": (Example(*row),)} for row in rows]
    return as_batch(collate([(item, sums_of(items)) for item in items], pad=1))


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(40, num_hidden_layers=3).double().eval()


def cross_entropy(model: Any, batch: Batch) -> torch.Tensor:
    logits = model(**batch.inputs, use_cache=False).logits
    return -token_logprobs(logits, batch.labels).sum(dim=1)


def test_the_attack_restores_the_text_and_keeps_its_size(model: Any) -> None:
    batch, options = batch_of(ROWS), LauOptions(lau_layer=1, lau_eps=0.3, lau_steps=8)
    layer = list(blocks(model).values())[1]
    seen: list[Any] = []
    hook = {layer: lambda module, given, output: seen.append(output)}
    with torch.no_grad(), hooked(hook):
        before = cross_entropy(model, batch)
    change = attack(model, layer, batch, options, number=1)
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    for row, (ids, _) in enumerate(ROWS):
        norm = hidden[row, 1 : len(ids)].norm()
        assert 0.01 * norm < change[row].norm() <= 0.3 * norm * (1 + 1e-9)
        assert not change[row, 0].any(), "the first token stays"
        assert not change[row, len(ids) :].any(), "padding stays"
    moved = {n: p.detach().clone() for n, p in model.named_parameters()}
    with attacked(model, batch, options, number=1):
        after = cross_entropy(model, batch)
        with torch.no_grad():
            assert torch.equal(cross_entropy(model, batch), before), "a frozen pass sees none"
    assert bool((after < before).all())
    assert torch.equal(cross_entropy(model, batch).detach(), before), "and none is left"
    assert all(torch.equal(p, moved[n]) and p.grad is None for n, p in model.named_parameters())


def test_a_row_is_attacked_the_same_way_in_any_batch(model: Any) -> None:
    options, layer = LauOptions(lau_eps=0.2), next(iter(blocks(model).values()))
    both = attack(model, layer, batch_of(ROWS), options, number=3)
    for row, given in enumerate(ROWS):
        alone = attack(model, layer, batch_of([given]), options, number=3)[0]
        assert torch.allclose(alone, both[row, : len(alone)], atol=1e-10)
    other = attack(model, layer, batch_of(ROWS), options, number=4)
    assert not torch.allclose(other, both), "another step starts elsewhere"


def test_size_0_is_the_method_itself_bit_for_bit(job: Job, tmp_path: Path) -> None:
    plain = go(job, tmp_path / "plain", "npo_gdr")
    zero = go(job, tmp_path / "zero", "npo_gdr_lau", knobs={"lau_eps": 0.0})
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "zero"))
    assert zero.losses == plain.losses
    whole = go(job, tmp_path / "whole", "npo_gdr_lau", knobs={"lau_steps": 2})
    parts = go(job, tmp_path / "parts", "npo_gdr_lau", knobs={"lau_steps": 2}, micro_batch_size=2)
    for first, second in zip(whole.losses, parts.losses, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=2e-4)
    found, usual = (run.losses[0].forget or 0.0 for run in (whole, plain))
    assert found > usual, "the text is more likely"
    with pytest.raises(OptionError, match="--lau-layer 9: use 0 to 1 in a model of 2 blocks"):
        go(job, tmp_path / "none", "npo_gdr_lau", knobs={"lau_layer": 9})


def test_with_lora_the_reference_is_not_attacked(job: Job, tmp_path: Path) -> None:
    found = go(job, tmp_path / "out", "npo_klr_lau_lora", max_steps=1, knobs={"lau_steps": 1})
    assert found.losses[0].retain == pytest.approx(0.0, abs=1e-6)
