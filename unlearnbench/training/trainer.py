"""The Trainer of every method: losses over a whole batch, put together from the pieces in
``methods/``, a mask on gradients, and each step's losses kept for the record.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from unlearnbench.errors import OptionError
from unlearnbench.methods import Method, Piece
from unlearnbench.methods.base import BatchLoss, FrozenModel, Gradient, Masks, OptimizerStep
from unlearnbench.methods.retain import gdr
from unlearnbench.methods.rows import Batch, Part, Role
from unlearnbench.training import dtypes, sharding, steps
from unlearnbench.training.batches import Schedule, as_batch, collate
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.rounded import PLAIN, ForwardPass, Survive
from unlearnbench.util.process import process_count

_PATIENCE = 7 * 24 * 3600  # seconds that processes wait while the main one evaluates or saves


@dataclass
class Reference:
    """A frozen model to compare with: a second copy, or the model with its adapter off."""

    copy: Any = None
    """None for LoRA."""

    def __call__(self, model: Any, inputs: dict[str, torch.Tensor], hidden: bool = False) -> Any:
        """The frozen model's output, without gradients and without dropout."""
        with torch.no_grad():
            if self.copy is not None:
                self.copy.to(inputs["input_ids"].device)
                return self.copy(**inputs, use_cache=False, output_hidden_states=hidden)
            bare = getattr(model, "module", model)  # not through DDP, which expects a backward pass
            was_training = bare.training
            bare.eval()
            try:
                with bare.disable_adapter():
                    return bare(**inputs, use_cache=False, output_hidden_states=hidden)
            finally:
                bare.train(was_training)


def descent(model: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Plain cross-entropy, token-weighted over the step: fine-tuning and reinforcing."""
    logits = model(**batch.inputs, use_cache=False).logits
    part = Part(logits, batch.labels, batch.all_rows, batch.all_tokens["forget"])
    return {"loss": gdr.loss(part, gdr.GdrOptions())}


@dataclass(frozen=True)
class Combined:
    """Forget loss + weighted terms on other texts, from one forward pass over all rows. A batch
    without a term's rows leaves the term out.
    """

    method: Method
    references: Mapping[str, FrozenModel] = field(default_factory=dict)

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighted terms and their sum."""
        read = self.method.reads
        if set(batch.rows) - read:  # of a way to make the gradient, or of teachers
            batch = batch.only(*(role for role in batch.rows if role in read))
        logits = model(**batch.inputs, use_cache=False).logits
        terms: dict[str, torch.Tensor] = {}
        for piece in self.method.terms:
            role: Role = "forget" if piece.kind == "forget" else piece.about.reads
            if role in batch.rows:
                part = self._part(role, piece, model, batch, logits)
                terms[role] = piece.module.loss(part, piece.options)
        first, *others = terms.values()
        return {"loss": sum(others, first), **terms}

    def _part(
        self, role: Role, piece: Piece, model: Any, batch: Batch, logits: torch.Tensor
    ) -> Part:
        where, inputs = batch.slice(role), batch.inputs_of(role)
        others = role == "forget" and "alternatives" in batch.rows
        return Part(
            logits[where],
            batch.labels[where],
            batch.all_rows,
            batch.all_tokens[role],
            batch.sequences.get(role),
            {n: self.references[n](model, inputs).logits for n in piece.about.references},
            None if batch.weights is None else batch.weights[where],
            batch.all_weight,
            self._part("alternatives", piece, model, batch, logits) if others else None,
            batch.soft if role == "forget" else None,
        )


def device() -> str:
    """Where models compute before the Trainer takes them."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Stage:
    """One training of one model."""

    folder: Path
    """For its checkpoints; its name is the training's."""
    schedule: Schedule
    loss: BatchLoss
    pad: int
    learns: Callable[[str], bool] | None = None
    """Which parameters may change, by name; None: all."""
    masks: Masks | None = None
    """Which rows of which parameters may change; None: all."""
    gradient: Callable[[OptimizerStep], Gradient] | None = None
    """Makes the gradient of a step; None: that of the loss."""
    adapts: tuple[str, ...] | None = None
    """The linear layers that get a LoRA adapter; None: all."""
    sgd: bool = False
    """Plain steps, without AdamW."""
    l1: float = 0.0
    """Soft-threshold after each step, in units of the learning rate."""
    noise: float = 0.0
    """See ``steps.Noise``."""
    survive: Survive = PLAIN
    rounding: str | None = None
    """A dtype of ``dtypes.ROUNDED``, whose numbers the weights are put on."""


def training_arguments(stage: Stage, options: TrainOptions, save_steps: int) -> TrainingArguments:
    """The Trainer's own settings. ``batch_size`` counts all processes and accumulated batches.
    Several GPUs in one process are refused: DataParallel mixes rows of several steps.
    """
    processes = process_count()
    share, rest = divmod(options.batch_size, processes)
    micro = options.micro_batch_size or share
    if rest or share % micro:
        raise OptionError(
            f"--batch-size {options.batch_size} cannot be shared by {processes} processes in "
            f"forward passes of {micro}; use a multiple of {processes * micro}"
        )
    cuda = torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(stage.folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        max_steps=stage.schedule.steps,
        learning_rate=options.lr,
        lr_scheduler_type=options.schedule,
        warmup_steps=options.warmup_steps,
        weight_decay=0.0,  # it would move weights that a mask holds still
        max_grad_norm=options.max_grad_norm,
        optim="sgd" if stage.sgd else "adamw_torch",
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_total_limit=1,
        seed=options.seed,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        ddp_timeout=_PATIENCE,
        train_sampling_strategy="sequential",  # the schedule is shuffled already
        disable_tqdm=True,  # our own line stands in
        report_to="none",
    )
    if (gpus := arguments.n_gpu) > 1:
        raise OptionError(
            f"{gpus} GPUs in one process: use `accelerate launch --num_processes {gpus} "
            "--mixed_precision no -m unlearnbench ...`, or show one with CUDA_VISIBLE_DEVICES=0"
        )
    return arguments


class UnlearnTrainer(Trainer):
    """Transformers' Trainer with a loss over forget and retain rows and an optional mask."""

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        stage: Stage,
        callbacks: Sequence[TrainerCallback] = (),
    ) -> None:
        self._state = steps.StepState()
        super().__init__(
            model=model,
            args=args,
            train_dataset=stage.schedule,
            data_collator=partial(collate, pad=stage.pad),
            callbacks=[
                steps.RequireFinite(),
                *([steps.Shrink(model, stage.l1)] if stage.l1 else []),
                *([steps.Noise(model, stage.noise)] if stage.noise else []),
                *([dtypes.RoundWeights(stage.rounding, args.seed)] if stage.rounding else []),
                *([self._state] if stage.gradient else []),
                *callbacks,
            ],
        )
        self.remove_callback(PrinterCallback)  # our own bar shows the loss
        self._stage = stage
        self._terms: dict[str, torch.Tensor] = {}
        self._place = ForwardPass(nullcontext())  # of the pass that is being made
        # Our loss is a share of the whole step's mean: not to be divided by accumulated batches.
        self.loss_is_scaled_for_ga = True
        # The batches of the step that is being made, where a method makes its gradient itself.
        self._waiting: list[Any] = []
        is_sharded = sharding.require_supported(self, stage)
        self._twin = sharding.empty_twin(model) if is_sharded else None

    def whole_model(self) -> Any:
        """The model as it stands, with whole weights. Every process has to call it."""
        if self._twin is None:
            return self.accelerator.unwrap_model(self.model)
        return sharding.gather(self.accelerator.unwrap_model(self.model_wrapped), self._twin)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *given: Any, **named: Any) -> Any:
        terms = self._place.weighted(self._stage.loss(model, as_batch(inputs)))
        loss = terms["loss"]
        self._require_finite(loss.item(), "the loss")
        for name, value in terms.items():
            known = self._terms.get(name, torch.zeros_like(value))
            self._terms[name] = known + value.detach()
        # Gradients are averaged over processes, and each has a share of the mean, not the mean.
        return loss * self.accelerator.num_processes

    def _require_finite(self, value: float, what: str) -> None:
        steps.require_finite(math.isfinite(value), what, self.state.global_step + 1, self.args)

    def get_batch_samples(self, *given: Any) -> Any:
        samples, items = super().get_batch_samples(*given)
        self._waiting = list(samples)
        return samples, items

    def training_step(self, model: Any, inputs: dict[str, Any], *given: Any) -> torch.Tensor:
        if self._stage.gradient is not None:
            loss = self._make_gradient(model)
        else:
            loss = self._backward(model, inputs, *given)
        if self._stage.masks is not None:
            sharding.mask_gradients(self.accelerator.unwrap_model(model), self._stage.masks)
        if self.is_deepspeed_enabled:  # which has updated the weights by now, but saved nothing
            norm = model.get_global_grad_norm()
            self._require_finite(0.0 if norm is None else float(norm), "the gradient")
        return loss

    def _backward(self, model: Any, inputs: dict[str, Any], *given: Any) -> torch.Tensor:
        """One pass after another: one's activations are held, and processes add up at the last."""
        bare = self.accelerator.unwrap_model(model)
        losses, loss = [], partial(self._stage.loss, bare)
        places = self._stage.survive.places(
            bare, lambda: steps.forget_term(loss, as_batch(self._prepare_inputs(inputs)))
        )
        for self._place in places:
            last = self._place is places[-1]
            with nullcontext() if last else self.accelerator.no_sync(model), self._place.block:
                losses.append(super().training_step(model, inputs, *given))
        return sum(losses[1:], losses[0])

    def _make_gradient(self, model: Any) -> torch.Tensor:
        """The whole step's gradient at its first batch, and nothing at the others."""
        assert self._stage.gradient is not None  # noqa: S101 - asked for only where there is one
        if not self._waiting:
            return torch.zeros((), device=self.args.device)
        model.train()
        batches = [as_batch(self._prepare_inputs(inputs)) for inputs in self._waiting]
        self._waiting = []
        bare, number = self.accelerator.unwrap_model(model), self.state.global_step + 1
        kept, survive = self._state.numbers, self._stage.survive
        step = steps.WholeStep(bare, self._stage.loss, batches, number, kept, survive)
        gradient = self._stage.gradient(step)
        loss = sum(gradient.terms.values())
        self._require_finite(loss, "the loss")
        for name, weight in step.weights.items():
            weight.grad = gradient.of[name].to(weight.dtype)
        share = 1 / self.accelerator.num_processes  # each process has the whole step's terms
        self._terms = {n: torch.tensor(v * share) for n, v in gradient.terms.items()}
        return torch.tensor(loss, device=self.args.device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self._terms:
            for name in sorted(self._terms):
                if name != "loss":
                    shares = self._terms[name].to(self.args.device)
                    logs[name] = float(self.accelerator.reduce(shares, reduction="sum"))
            self._terms = {}
        super().log(logs, start_time)
