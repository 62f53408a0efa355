"""What happens around the steps of a training: checks, noise, shrinking, and what is kept of each.

Imports transformers at once, so only functions import this module.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from unlearnbench.errors import TrainingError
from unlearnbench.methods.base import inner_linears
from unlearnbench.training import sharding


def not_finite(stage: str, step: int, what: str, folder: str | None) -> str:
    """One line: which step, and what is left."""
    kept = sorted(Path(folder or ".").glob("checkpoint-*"), key=lambda p: p.stat().st_mtime)
    left = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was saved before"
    return (
        f"{what} of step {step} ({stage}) is not finite; training stopped, {left}; use a smaller "
        "--lr, fewer steps or --weights-dtype fp32"
    )


class RequireFinite(TrainerCallback):
    """Stops before a gradient that is not finite reaches the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        gradients = [p.grad for p in given["model"].parameters() if p.grad is not None]
        fine = all(bool(sharding.local(gradient).isfinite().all()) for gradient in gradients)
        if not sharding.agreed(fine, args.device):
            raise TrainingError(
                not_finite("training", state.global_step + 1, "the gradient", args.output_dir)
            )


def soft_threshold(weight: torch.Tensor, amount: float) -> torch.Tensor:
    """sign(w) max(|w| - amount, 0): the proximal step of an L1 penalty, element by element."""
    return torch.nn.functional.softshrink(weight, amount)


class Shrink(TrainerCallback):
    """After each optimizer step, soft-threshold every inner linear weight by lr x factor."""

    def __init__(self, model: Any, factor: float) -> None:
        self._modules, self._factor = list(inner_linears(model).values()), factor

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        lr = given["optimizer"].param_groups[0]["lr"]
        with torch.no_grad():
            for module in self._modules:  # FSDP puts another weight in
                weight = sharding.local(module.weight)
                weight.copy_(soft_threshold(weight, lr * self._factor))


class Noise(TrainerCallback):
    """Takes each gradient under uniform noise on every inner linear weight, ``width`` steps of int4
    wide (a step: the row's largest magnitude / 7), and updates the weights without it.

    What is learned so survives rounding, which is much like such noise: Baskin et al. 2018, "UNIQ",
    arXiv 1804.10969.
    """

    def __init__(self, model: Any, width: float) -> None:
        self._modules, self._width = list(inner_linears(model).values()), width
        self._kept: list[torch.Tensor] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        with torch.no_grad():
            for module in self._modules:
                self._kept.append(module.weight.clone())
                step = module.weight.abs().amax(dim=1, keepdim=True) / 7
                noise = torch.rand_like(module.weight) - 0.5
                module.weight.add_(noise * step * self._width)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        with torch.no_grad():
            for module, weight in zip(self._modules, self._kept, strict=True):
                module.weight.copy_(weight)
        self._kept = []


class Watch(TrainerCallback):
    """Keeps every step's losses, moves the bar, and puts the tokenizer beside each checkpoint."""

    def __init__(self, keep: Callable[[dict[str, float]], None], tokenizer: Any, bar: Any) -> None:
        self._keep, self._tokenizer, self._bar = keep, tokenizer, bar

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._bar.update(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        if "loss" in logs and state.is_world_process_zero:
            self._keep({"step": state.global_step, **logs})
            self._bar.update(1)
            self._bar.set_postfix(loss=f"{logs['loss']:.4g}")

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            self._tokenizer.save_pretrained(folder)


class StepState(TrainerCallback, ExportableState):
    """Numbers that a method keeps from step to step; each checkpoint of the training has them."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """What goes into ``trainer_state.json``."""
        return {"args": {}, "attributes": {"numbers": dict(self.numbers)}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take over what the checkpoint has that the training goes on from."""
        self.numbers |= state.stateful_callbacks[type(self).__name__]["attributes"]["numbers"]
