"""Causal tracing against runs in which outputs are put back by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import make_model
from tests.training.helpers import go
from unlearnbench.errors import MetricError
from unlearnbench.methods.masks.mlp_traced import TracedOptions, choose, trace
from unlearnbench.methods.rows import Example
from unlearnbench.training.job import Job

IDS = (0, 5, 9, 30, 7, 8, 2)


def by_hand(model: Any, restored: int | None, prompt: int, seed: int) -> float:
    """The answer's mean log-probability with noise, one block's feed-forward output given back:
    the blocks one after another, without hooks.
    """
    inner, ids = model.model, torch.tensor([IDS])
    table = inner.embed_tokens.weight
    drawn = torch.randn(prompt, table.shape[1], generator=torch.Generator().manual_seed(seed))
    clean = inner.embed_tokens(ids)
    noisy = clean.clone()
    noisy[0, :prompt] += (3.0 * table.float().std() * drawn).to(table)
    at = torch.arange(len(IDS))[None]
    rotary = inner.rotary_emb(clean, at)
    mask = torch.full((len(IDS), len(IDS)), -torch.inf, dtype=table.dtype).triu(1)[None, None]

    def step(block: Any, x: torch.Tensor, given: torch.Tensor | None) -> Any:
        y = block.input_layernorm(x)
        x = x + block.self_attn(y, position_embeddings=rotary, attention_mask=mask)[0]
        out = block.mlp(block.post_attention_layernorm(x))
        return x + (out if given is None else given), out

    for number, block in enumerate(inner.layers):
        clean, out = step(block, clean, None)
        noisy, _ = step(block, noisy, out if number == restored else None)
    logprobs = model.lm_head(inner.norm(noisy))[0].log_softmax(-1)
    found = [float(logprobs[t - 1, IDS[t]]) for t in range(prompt, len(IDS))]
    return sum(found) / len(found)


@torch.no_grad()
def test_effects_are_those_of_outputs_put_back_by_hand() -> None:
    model: Any = make_model(40, num_hidden_layers=3).double().eval()
    model.set_attn_implementation("eager")
    example = Example(IDS, (-100,) * 3 + IDS[3:], is_qa=True, prompt=3)
    found = trace(model, example, 3.0, seed=5)
    noisy = by_hand(model, None, 3, 5)
    for number, effect in enumerate(found):
        assert effect == pytest.approx(by_hand(model, number, 3, 5) - noisy, abs=1e-9)
    assert len(set(found)) == 3


def test_a_text_that_learns_nothing_in_its_answer_says_nothing() -> None:
    model: Any = make_model(40, num_hidden_layers=3)
    hidden = Example(IDS, (*IDS[:3], *[-100] * 4))
    known = Example(IDS, (*[-100] * 3, *IDS[3:]), is_qa=True, prompt=3)
    assert trace(model, hidden, 3.0, seed=5) == []
    context: Any = SimpleNamespace(model=model, forget=(known,), seed=0)
    alone = choose(context, TracedOptions())
    context.forget = (known, hidden)
    beside = choose(context, TracedOptions())
    assert all(torch.equal(mask, beside[name]) for name, mask in alone.items())
    context.forget = (hidden,)
    with pytest.raises(MetricError, match="no token of the first texts' answers is learned"):
        choose(context, TracedOptions())


def test_the_blocks_with_the_largest_effects_are_chosen(
    monkeypatch: pytest.MonkeyPatch, job: Job, tmp_path: Path
) -> None:
    effects = [0.1, 0.5, 0.5, -1.0, 0.4]
    home = "unlearnbench.methods.masks.mlp_traced.trace"
    monkeypatch.setattr(home, lambda *given: list(effects))
    model = make_model(40, num_hidden_layers=5)
    context: Any = SimpleNamespace(model=model, forget=[None] * 3, seed=0)
    masks = choose(context, TracedOptions(mlp_top=0.4))
    chosen = {name.split(".")[2] for name, mask in masks.items() if mask.all()}
    assert chosen == {"1", "2"}
    effects[2] = float("nan")
    with pytest.raises(MetricError, match="not finite"):
        choose(context, TracedOptions())
    monkeypatch.undo()
    go(job, tmp_path / "out", "ga_gdr_mlp_traced", max_steps=1)
    made = load_file(tmp_path / "out/masks/mlp_traced_mask.safetensors")
    assert sum(bool(mask.any()) for mask in made.values()) == 3
