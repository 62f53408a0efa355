"""Weights under training on bf16's numbers, by the nearest and by a draw."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.helpers import go, same, weights
from tests.training.test_job_resume import Stop
from unlearnbench.checkpoints.origin import read_origin
from unlearnbench.errors import OptionError
from unlearnbench.training import sharding
from unlearnbench.training import trainer as trainer_module
from unlearnbench.training.dtypes import RoundWeights
from unlearnbench.training.job import Job
from unlearnbench.util.bf16 import round_nearest


class Numbers(torch.nn.Module):
    """One parameter."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(values.clone())


class State:
    global_step = 0


def test_rounded_after_each_step_is_training_in_bf16_where_arithmetic_is_exact() -> None:
    """Steps of powers of two, which fp32 adds exactly to numbers of bf16; many round away."""
    start = (torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 0.06).bfloat16()
    stored, held = Numbers(start), Numbers(start.float())
    optimizers = [torch.optim.SGD(model.parameters(), lr=2**-14) for model in (stored, held)]
    callback, state = RoundWeights("bf16-rounded", 0), State()
    callback.on_train_begin(None, state, None, model=held)
    for step in range(60):
        draws = torch.Generator().manual_seed(step)
        sizes = torch.randint(-3, 3, start.shape, generator=draws).float().exp2()
        sizes *= torch.randint(0, 2, start.shape, generator=draws) * 2 - 1
        for model, optimizer in zip((stored, held), optimizers, strict=True):
            model.weight.grad = sizes.to(model.weight.dtype)
            optimizer.step()
        exact = held.weight.detach().clone()
        callback.on_optimizer_step(None, state, None, model=held)
        assert torch.equal(held.weight, stored.weight.float())
    assert not torch.equal(exact, held.weight.detach())  # rounding had something to do
    stood = held.weight.detach() == start.float()
    assert 0.05 < stood.float().mean() < 0.95
    assert start.float().abs()[stood].mean() > start.float().abs()[~stood].mean()


def test_a_draw_follows_from_seed_and_step() -> None:
    def step(seed: int, number: int) -> torch.Tensor:
        model, state = Numbers(torch.full((256,), 1 + 2**-9)), State()
        state.global_step = number
        RoundWeights("bf16-sr", seed).on_optimizer_step(None, state, None, model=model)
        return model.weight.detach()

    assert torch.equal(step(3, 5), step(3, 5))
    assert not torch.equal(step(3, 5), step(3, 6))
    assert not torch.equal(step(3, 5), step(4, 5))
    assert not torch.equal(step(2**31 - 1, 5), step(0, 5))


def test_what_takes_no_gradient_is_left_alone() -> None:
    model = Numbers(torch.full((8,), 1 + 2**-10))
    model.weight.requires_grad_(False)
    RoundWeights("bf16-rounded", 0).on_train_begin(None, State(), None, model=model)
    assert (model.weight == 1 + 2**-10).all()


@pytest.mark.parametrize("dtype", ["bf16-rounded", "bf16-sr"])
def test_weights_are_saved_in_bf16_and_the_dtype_is_recorded(
    job: Job, tmp_path: Path, dtype: str
) -> None:
    out = tmp_path / "out"
    made = go(job, out, "ga_gdr_sure", weights_dtype=dtype, knobs={"sure_top": 0.5})
    assert made.options.weights_dtype == dtype
    assert read_origin(out / "unlearning.json")["weights_dtype"] == dtype
    saved = weights(out)
    assert {t.dtype for t in saved.values()} == {torch.bfloat16}
    assert '"dtype": "bfloat16"' in (out / "config.json").read_text()
    before = weights(Path(job.model))
    moved = {n: (saved[n] != before[n].bfloat16()) for n in saved}
    assert any(bool(m.any()) for m in moved.values())
    masks = next((out / "masks").iterdir())
    from safetensors.torch import load_file

    for name, mask in load_file(masks).items():
        assert not moved[name][~mask].any(), "a mask holds weights still through rounding"


@pytest.mark.parametrize("method", ["ga", "ga_lora"])
def test_interrupted_and_resumed_gives_the_same_weights(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    options = {"max_steps": 4, "save_steps": 2, "weights_dtype": "bf16-sr"}
    go(job, tmp_path / "whole", method, **options)
    step = trainer_module.UnlearnTrainer.training_step

    def interrupt(self: Any, *given: Any) -> Any:
        if self.state.global_step == 3:
            raise Stop
        for weight in self.model.parameters():
            if weight.requires_grad:
                assert torch.equal(round_nearest(weight), weight)
        return step(self, *given)

    monkeypatch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
    with pytest.raises(Stop):
        go(job, tmp_path / "parts", method, **options)
    monkeypatch.undo()
    go(replace(job, resume=True), tmp_path / "parts", method, **options)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    other = go(job, tmp_path / "seed", method, seed=1, **options)
    assert math.isfinite(other.losses[-1].loss)


def test_deepspeed_keeps_weights_to_itself() -> None:
    class Stage:
        masks, l1, rounding = None, 0.0, "bf16-sr"

    with pytest.raises(OptionError, match="rounding after each step works on weights that Deep"):
        sharding._require_deepspeed(None, Stage())
