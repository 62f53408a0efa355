"""What happens in and around an optimizer step: the gradients that a file in ``methods/steps`` is
given, of the terms of the loss at whatever the weights are just then, over all batches that are
accumulated; and the callbacks of the Trainer: checks, noise, shrinking, and what is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, get_scheduler
from transformers.trainer_callback import ExportableState

from unlearnbench.checkpoints.load import out_first
from unlearnbench.errors import TrainingError
from unlearnbench.methods.base import (
    BatchLoss,
    Gradient,
    OptimizerStep,
    Within,
    inner_linears,
)
from unlearnbench.methods.rows import Batch, Part, Role
from unlearnbench.training import sharding
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.rounded import PLAIN, Rounding, Survive, through
from unlearnbench.util.process import ProgressLine, process_count


@dataclass
class WholeStep(OptimizerStep):
    """An ``OptimizerStep``; what its methods do is said there. It leaves ``.grad`` alone, and
    computes on the bare model, so that no wrapper reduces a gradient that is only tried.
    """

    model: Any
    loss: BatchLoss
    batches: Sequence[Batch]
    number: int
    state: dict[str, float]
    survive: Survive = PLAIN

    def __post_init__(self) -> None:
        self.weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.whole = self.survive.whole

    def usual(self) -> Gradient:
        return self._gradient("forget", "retain", "auxiliary", "alternatives")

    def forget(self, within: Within | None = None) -> Gradient:
        return self._gradient("forget", "alternatives", within=within)

    def retain(self) -> Gradient:
        return self._gradient("retain", "auxiliary")

    def term(self, role: Role, loss: Callable[[Part], torch.Tensor]) -> Gradient:
        def alone(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
            logits = model(**batch.inputs, use_cache=False).logits
            value = loss(Part(logits, batch.labels, batch.all_rows, batch.all_tokens[role]))
            return {"loss": value, role: value}

        return self._gradient(role, loss=alone)

    def _gradient(
        self, *roles: Role, loss: BatchLoss | None = None, within: Within | None = None
    ) -> Gradient:
        of = {name: torch.zeros_like(weight) for name, weight in self.weights.items()}
        terms: dict[str, torch.Tensor] = {}
        for batch in self.batches:
            if not any(role in batch.rows for role in roles):
                continue
            rows = batch.only(*roles)
            made = partial(loss or self.loss, self.model)
            for place in self.survive.places(self.model, partial(forget_term, made, rows)):
                inside = nullcontext() if within is None else within(self.model, rows)
                # Also where a method moves weights meanwhile.
                with torch.enable_grad(), place.block, inside:
                    found = place.weighted(made(rows))
                    whole = found.pop("loss")
                    given = list(self.weights.values())
                    shares = torch.autograd.grad(whole, given, allow_unused=True)
                for name, share in zip(of, shares, strict=True):
                    if share is not None:
                        of[name] += share
                for name, value in found.items():
                    known = terms.get(name, torch.zeros_like(value))
                    terms[name] = known + value.detach()
        if process_count() > 1:
            for tensor in (*of.values(), *terms.values()):
                torch.distributed.all_reduce(tensor)
        return Gradient({name: float(value) for name, value in terms.items()}, of)

    @contextmanager
    def restored(self) -> Iterator[None]:
        kept = [weight.detach().clone() for weight in self.weights.values()]
        try:
            yield
        finally:
            with torch.no_grad():
                for weight, value in zip(self.weights.values(), kept, strict=True):
                    weight.copy_(value)

    def through(self, function: Rounding) -> AbstractContextManager[None]:
        return through(self.model, function)


def rates(options: TrainOptions, steps: int) -> list[float]:
    """The learning rate of each step, as the Trainer has it."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=options.lr)
    schedule: Any = get_scheduler(options.schedule, optimizer, options.warmup_steps, steps)
    (factor,) = schedule.lr_lambdas
    return [options.lr * factor(step) for step in range(steps)]


def forget_term(
    loss: Callable[[Batch], dict[str, torch.Tensor]], batch: Batch
) -> torch.Tensor | None:
    """The forget term of a batch; None where it has no rows to forget."""
    if "forget" not in batch.rows:
        return None
    return loss(batch.only("forget", "alternatives"))["forget"]


def require_finite(fine: bool, what: str, step: int, args: Any) -> None:
    """Stop, in all processes together, where one has a value that is no number. The TrainingError
    says which step, and what is left.
    """
    if sharding.agreed(fine, args.device):
        return
    folder = Path(args.output_dir)
    kept = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    left = f"the last good checkpoint is {kept[-1]}" if kept else "no checkpoint was saved before"
    raise TrainingError(
        f"{what} of step {step} ({folder.name}) is not finite; training stopped, {left}; use a "
        "smaller --lr, fewer steps or --weights-dtype fp32"
    )


class RequireFinite(TrainerCallback):
    """Stops before a gradient that is not finite reaches the weights."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        gradients = [p.grad for p in given["model"].parameters() if p.grad is not None]
        fine = all(bool(sharding.local(gradient).isfinite().all()) for gradient in gradients)
        require_finite(fine, "the gradient", state.global_step + 1, args)


class Shrink(TrainerCallback):
    """After each optimizer step, soft-threshold every inner linear weight by lr x factor: the
    proximal step of an L1 penalty.
    """

    def __init__(self, model: Any, factor: float) -> None:
        self._modules, self._factor = list(inner_linears(model).values()), factor

    @torch.no_grad()
    def on_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        amount = given["optimizer"].param_groups[0]["lr"] * self._factor
        for module in self._modules:  # FSDP puts another weight in
            weight = sharding.local(module.weight)
            weight.copy_(torch.nn.functional.softshrink(weight, amount))


class Noise(TrainerCallback):
    """Takes each gradient under uniform noise on every inner linear weight, ``width`` steps of int4
    wide (a step: the output's largest weight / 7), and updates the weights without it. What is
    learned so survives rounding, which is much like such noise: "UNIQ", arXiv 1804.10969.
    """

    def __init__(self, model: Any, width: float) -> None:
        self._modules, self._width = list(inner_linears(model).values()), width
        self._kept: list[torch.Tensor] = []

    @torch.no_grad()
    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for module in self._modules:
            self._kept.append(module.weight.clone())
            weight = out_first(module, module.weight)
            step = weight.abs().amax(dim=1, keepdim=True) / 7
            noise = torch.rand_like(weight) - 0.5
            weight.add_(noise * step * self._width)

    @torch.no_grad()
    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        for module, weight in zip(self._modules, self._kept, strict=True):
            module.weight.copy_(weight)
        self._kept = []


class Watch(TrainerCallback):
    """Keeps every step's losses, shows how far it is, puts the tokenizer beside checkpoints."""

    def __init__(
        self,
        keep: Callable[[dict[str, float]], None],
        save_tokenizer: Callable[[Path], None],
        shown: ProgressLine,
    ) -> None:
        self._keep, self._save_tokenizer, self._shown = keep, save_tokenizer, shown

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._shown.goes_on(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        logs = given["logs"]
        if "loss" in logs and state.is_world_process_zero:
            self._keep({"step": state.global_step, **logs})
            self._shown.update(1, f"(loss {logs['loss']:.4g})")

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        if state.is_world_process_zero:
            self._save_tokenizer(Path(args.output_dir) / f"checkpoint-{state.global_step}")


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
