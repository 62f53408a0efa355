"""The dtype of weights under training. Two need no bf16 arithmetic: weights are held in fp32, and
put on bf16's numbers after each optimizer step. ``bf16-rounded`` takes the nearest, as bf16 weights
do; ``bf16-sr`` one of the two around, the nearer more often, so that small updates are kept on
average (stochastic rounding).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import TrainerCallback

from unlearnbench.training import sharding
from unlearnbench.util.bf16 import round_nearest, round_stochastic

ROUNDED = ("bf16-rounded", "bf16-sr")


def cast_model(model: Any, dtype: str) -> Any:
    """``model`` in fp32 or bf16, or in fp32 on bf16's numbers; auto: as it is."""
    if dtype in ROUNDED:
        return model.to(torch.bfloat16).to(torch.float32)
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return model.to(kinds[dtype]) if dtype in kinds else model


def as_saved(model: Any, dtype: str, keep: bool = False) -> Any:
    """What is saved of a model: itself, in bf16 where its numbers are. ``keep``: then a copy, for a
    training that goes on.
    """
    if dtype not in ROUNDED:
        return model
    return (copy.deepcopy(model) if keep else model).to(torch.bfloat16)


class RoundWeights(TrainerCallback):
    """Puts what is trained on bf16's numbers after each optimizer step."""

    def __init__(self, dtype: str, seed: int) -> None:
        self._stochastic, self._seed = dtype == "bf16-sr", seed

    @torch.no_grad()
    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """An adapter's first matrix is no number of bf16 yet; all others are."""
        for weight in _trained(given["model"]):
            weight.copy_(round_nearest(weight))

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """What is drawn follows from seed and step: the same in each process that holds a copy, and
        after an interruption.
        """
        generators: dict[torch.device, torch.Generator] = {}
        for weight in _trained(given["model"]):
            if not self._stochastic:
                weight.copy_(round_nearest(weight))
                continue
            if weight.device not in generators:
                made = torch.Generator(weight.device)
                # torch's generator on CPU takes 32 bits: steps of one seed must not meet another's.
                made.manual_seed((self._seed * 1_000_003 + state.global_step) % 2**32)
                generators[weight.device] = made
            weight.copy_(round_stochastic(weight, generators[weight.device]))


def _trained(model: Any) -> list[torch.Tensor]:
    return [sharding.local(p) for p in model.parameters() if p.requires_grad]
