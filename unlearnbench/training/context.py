"""What a method is given: the target, the texts, and the trainings that it may ask for."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, set_seed

from unlearnbench.checkpoints.origin import LossRecord
from unlearnbench.checkpoints.tokenizer import end_tokens, padding_id
from unlearnbench.errors import OptionError
from unlearnbench.methods import Method, Piece
from unlearnbench.methods.base import (
    BatchLoss,
    Drawing,
    Ensemble,
    FrozenModel,
    Masks,
    TrainingContext,
)
from unlearnbench.methods.rows import Example, Role, Shard, sequence_logprobs
from unlearnbench.training.alternatives import GENERIC, OWN, with_generic
from unlearnbench.training.batches import Rows, make_schedule
from unlearnbench.training.corpus import Encoder
from unlearnbench.training.dtypes import ROUNDED, as_saved, cast_model
from unlearnbench.training.masks import choose_masks
from unlearnbench.training.options import CorpusOptions, TrainOptions
from unlearnbench.training.output import KEPT, last_checkpoint, run_trainer, save_state
from unlearnbench.training.own import with_own
from unlearnbench.training.passes import each, linear_gradients, logits
from unlearnbench.training.recital import Reciter, StopRule, StopWhenForgotten
from unlearnbench.training.rounded import PLAIN, survival
from unlearnbench.training.sampled import Writer
from unlearnbench.training.steps import Watch
from unlearnbench.training.trainer import (
    Combined,
    Reference,
    Stage,
    UnlearnTrainer,
    descent,
    device,
    training_arguments,
)
from unlearnbench.util.process import ProgressLine, is_main, muted, unmoved_caches

if TYPE_CHECKING:
    from unlearnbench.training.select import Selector

log = logging.getLogger("unlearnbench")

MADE = {GENERIC: with_generic, OWN: with_own}
"""Other answers that the target makes, by the word that asks for them."""

Forecast = Callable[[PreTrainedModel, TrainOptions, int], None]
"""(model, options, steps): says what a training can move."""


@dataclass
class TrainerContext(TrainingContext):
    """A ``TrainingContext`` over transformers' Trainer; what its methods do is said there."""

    model: PreTrainedModel
    """The target, in the dtype under training."""
    encoder: Encoder
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    auxiliary: tuple[Example, ...]
    options: TrainOptions
    method: Method
    home: Path
    """A folder for checkpoints of the training."""
    resume: bool = False
    progress: bool = False
    selector: Selector | None = None
    unseen: tuple[Example, ...] = ()
    start: PreTrainedModel | None = None
    rule: StopRule | None = None
    """When to stop, where that is not the number of steps."""
    alternative: str | None = None
    """What ``--alternative`` names, if anything."""
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    anchors: Mapping[str, str] = field(default_factory=dict)
    """What stands in the place of names, where ``--anchors`` gives some."""
    forecast: Forecast | None = None
    members: Sequence[str] = ()
    shards: Sequence[Shard] = ()
    losses: list[LossRecord] = field(default_factory=list)
    """Every step's, filled as it goes."""
    kept: dict[str, int] = field(default_factory=dict)
    """States on the way by name, and how many steps had been made."""
    _frozen: dict[str, FrozenModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokenizer, self.seed = self.encoder.tokenizer, self.options.seed
        self.epochs = self.options.epochs
        self.pad = padding_id(self.tokenizer, self.encoder.rows)

    def freeze(self, model: PreTrainedModel | None = None) -> FrozenModel:
        """A model to compare with. The target is a copy, or for LoRA the model, adapter off."""
        if model is None and self.options.lora_rank is not None:
            return Reference()
        frozen: Any = (model or self.copy_of_target()).eval().requires_grad_(False)
        return Reference(cast_model(frozen, self.options.reference_dtype))

    def references(self, *pieces: Piece) -> dict[str, FrozenModel]:
        """The frozen models whose logits some pieces read, by name; each is made once."""
        for piece in pieces:
            missing = [name for name in piece.about.references if name not in self._frozen]
            if "target" in missing:
                self._frozen["target"] = self.freeze()
            make = piece.hook("references")
            if make is not None and missing:
                self._frozen |= {name: self.freeze(model) for name, model in make(self).items()}
        return self._frozen

    def descend(
        self, model: PreTrainedModel, examples: Sequence[Example], stage: str, **changed: Any
    ) -> PreTrainedModel:
        here = replace(self, options=self.options.model_copy(update=changed)) if changed else self
        return train(here, model, make_stage(here, stage, {"forget": examples}, descent))

    def fit(
        self,
        loss: BatchLoss,
        learns: Callable[[str], bool] | None = None,
        *,
        forget: Sequence[Example] | None = None,
        stage: str = "unlearn",
        **given: Any,
    ) -> PreTrainedModel:
        texts = forget or self.forget
        beside = len(texts[0].alternatives) if forget else 0
        made = make_stage(self, "unlearn", self.sets(texts), loss, beside)
        made = replace(made, folder=self.home / stage, learns=learns, **given)
        return train(self, self.model, made)

    def run(self) -> tuple[PreTrainedModel | Ensemble, Masks | None]:
        """What the method makes of the target, and the map where it has one."""
        whole = self.method.piece("whole")
        if whole is not None:
            return whole.module.train(self, whole.options), None
        if not self.method.pieces:
            return self.descend(self.model, self.forget, "finetune"), None
        chooser, stepper = self.method.piece("masks"), self.method.piece("steps")
        masks = None if chooser is None else choose_masks(self, chooser, self.home, self.losses)
        loss = Combined(self.method, self.references(*self.method.terms))
        gradient = None if stepper is None else stepper.hook("gradient")
        return _forget(self, loss, {"masks": masks, "gradient": gradient}), masks

    def sets(self, forget: Sequence[Example]) -> dict[Role, Sequence[Example]]:
        return {"forget": forget, "retain": self.retain, "auxiliary": self.auxiliary}

    @cached_property
    def prepared(self) -> tuple[Example, ...]:
        """The forget set as the forget loss reads it."""
        return _prepared(self)

    def relabel(
        self, models: Sequence[PreTrainedModel], label: Callable[..., torch.Tensor]
    ) -> tuple[Example, ...]:
        rows = zip(self.forget, self.measure(models, self.forget, label), strict=True)
        return tuple(replace(e, labels=tuple(labels[: len(e.ids)])) for e, labels in rows)

    def logits(self, model: PreTrainedModel, examples: Sequence[Example]) -> Iterator[torch.Tensor]:
        return logits(self.options, self.pad, model, examples)

    def measure(
        self,
        models: Sequence[PreTrainedModel],
        examples: Sequence[Example],
        make: Callable[..., torch.Tensor],
    ) -> list[Any]:
        return each(self.options, self.pad, models, examples, make)

    def others(self) -> tuple[Example, ...]:
        make = MADE.get(self.alternative or "")
        examples = make(self) if make else self.forget
        return tuple(other for example in examples for other in example.alternatives)

    def write(self, prompts: Mapping[str, Sequence[int]], how: Drawing) -> list[tuple[int, ...]]:
        ends = end_tokens(self.model, self.tokenizer)
        return Writer(how, self.seed, ends, self.pad)(self.model, prompts)

    def retokenize(self, tokenizer: Any) -> None:
        table: Any = self.model.get_input_embeddings()
        rows = int(table.weight.shape[0])
        self.encoder = replace(self.encoder, tokenizer=tokenizer, rows=rows, copy=None)
        self.tokenizer = tokenizer

    def keep(self, name: str, model: PreTrainedModel) -> None:
        self.kept[name] = len(self.losses)
        if is_main():
            state = as_saved(model, self.options.weights_dtype, keep=True)
            save_state(self.home / KEPT / name, state, self.encoder.save)

    def answer(self, example: Example, other: str | Sequence[int]) -> Example:
        return self.encoder.answer(example, other)

    def forget_gradient(self) -> dict[str, torch.Tensor]:
        piece = self.method.piece("forget")
        assert piece is not None  # noqa: S101 - a mask goes with a forget loss
        beside = piece.alternatives
        rows: list[Rows] = [
            {"forget": (e,), **({"alternatives": e.alternatives[:beside]} if beside else {})}
            for e in self.prepared
        ]
        loss = Combined(self.method, self.references(piece))
        return linear_gradients(self.options, self.pad, self.model, loss, rows)


def _prepared(context: TrainerContext) -> tuple[Example, ...]:
    """The forget set with the loss' own labels, weights and alternatives, what teachers say, and
    the target's log-probability of each sequence.
    """
    piece = context.method.piece("forget")
    if piece is None:
        return context.forget
    make = MADE.get(context.alternative or "") or piece.hook("examples")
    about = piece.about
    examples = context.forget if make is None else tuple(make(context))
    if any(len(example.alternatives) < piece.alternatives for example in examples):
        raise OptionError(
            f"{about.name} reads {piece.alternatives} other answers beside each text, and a "
            "forget text has fewer"
        )
    return with_logprobs(context, examples) if about.sequences else examples


def with_logprobs(context: TrainerContext, examples: Sequence[Example]) -> tuple[Example, ...]:
    """With the target's log-probability of each, and of each of its alternatives."""
    others = [other for example in examples for other in example.alternatives]
    known = context.measure([context.model], examples, sequence_logprobs)
    made = [replace(e, reference=logprob) for e, logprob in zip(examples, known, strict=True)]
    known = context.measure([context.model], others, sequence_logprobs)
    rest = (replace(other, reference=v) for other, v in zip(others, known, strict=True))
    return tuple(replace(e, alternatives=tuple(next(rest) for _ in e.alternatives)) for e in made)


def _forget(context: TrainerContext, loss: BatchLoss, more: Mapping[str, Any]) -> PreTrainedModel:
    """Train the target with a forget loss: on the whole set, or on chunks of it one after another,
    each in steps of all its sequences; each until the rule is met, where there is one.
    """
    o, examples, model = context.options, context.prepared, context.model
    size = o.chunk or len(examples)
    chunks = [examples[at : at + size] for at in range(0, len(examples), size)]
    if o.stop_el is not None:
        reciter = Reciter(o.stop_el, context.pad, end_tokens(model, context.tokenizer))
        for which, texts in (("unseen", context.unseen), *(("forget", c) for c in chunks)):
            reciter.require_long_enough(texts, which)
        found = reciter(model.to(device()), context.unseen)  # type: ignore[arg-type]
        context.rule = StopRule(reciter, found, len(context.unseen))
    for number, chunk in enumerate(chunks, 1):
        here = context
        if o.chunk is not None:
            micro = math.gcd(o.micro_batch_size or len(chunk), len(chunk))
            change = {"batch_size": len(chunk), "micro_batch_size": micro}
            change["seed"] = o.seed + 10_007 * (number - 1)  # else each draws the same retain rows
            here = replace(context, options=o.model_copy(update=change))
        name = "unlearn" if number == 1 else f"unlearn-{number}"
        stage = replace(make_stage(here, name, here.sets(chunk), loss), **more)
        stop = None
        if context.rule is not None:
            stop = StopWhenForgotten(context.rule, chunk, stage.schedule.epoch)
        model = train(here, model, stage, stop)
    return model


def make_stage(
    context: TrainerContext,
    name: str,
    sets: Mapping[Role, Sequence[Example]],
    loss: BatchLoss,
    beside: int = 0,
) -> Stage:
    """A training of the context's options on some sets, so many other answers ``beside`` each
    forget row, or as many as the method's loss reads.
    """
    o, piece = context.options, context.method.piece("forget")
    if piece is not None and loss is not descent:
        beside = piece.alternatives
    schedule = make_schedule(sets, o, beside)
    final = name.partition("-")[0] == context.method.stage  # not of a model to compare with
    survive, noise = (survival(o), o.weight_noise) if final else (PLAIN, 0.0)
    rounding = o.weights_dtype if o.weights_dtype in ROUNDED else None
    more: dict[str, Any] = {"l1": o.l1, "noise": noise, "rounding": rounding}
    return Stage(context.home / name, schedule, loss, context.pad, **more, survive=survive)


def train(
    context: TrainerContext,
    model: PreTrainedModel,
    stage: Stage,
    stop: StopWhenForgotten | None = None,
) -> PreTrainedModel:
    """Train ``model``; an adapter is merged at the end, unless it is to be kept."""
    options = context.options
    longest = max(len(rows["forget"][0].ids) for rows in stage.schedule.items)
    room = getattr(context.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(room, int) and longest > room:
        raise OptionError(
            f"a sequence of {longest} tokens does not fit the model's context of {room}; "
            "use a smaller --pack or --max-length"
        )
    learner: Any = model
    if options.lora_rank is not None:
        import peft

        set_seed(options.seed)  # an adapter's first matrix is random
        begun = isinstance(model, peft.PeftModel)
        config = peft.LoraConfig(
            r=options.lora_rank,
            lora_alpha=2 * options.lora_rank,
            lora_dropout=0.0,
            target_modules=list(stage.adapts) if stage.adapts else "all-linear",
            task_type="CAUSAL_LM",
        )
        if not begun:
            with muted(), unmoved_caches():  # PEFT asks GPTQModel, which greets
                learner = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in learner.named_parameters():  # what may not change takes no gradient
        if stage.masks is not None:
            parameter.requires_grad_(name in stage.masks and bool(stage.masks[name].any()))
        elif stage.learns is not None and not stage.learns(name):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise OptionError("no parameter of this model would be trained; use another method")
    # An adapter's products are rounded once, when they are merged.
    is_plain = options.lora_rank is None and stage.folder.name == "unlearn"
    if is_plain and context.forecast is not None:
        context.forecast(model, options, stage.schedule.steps)
    trained = _run(context, learner, stage, stop)
    is_merged = options.lora_rank is not None and not options.keep_adapter
    if is_merged:
        trained = trained.merge_and_unload().requires_grad_(True)  # for a training behind it
    return trained  # type: ignore[no-any-return]


def _run(context: TrainerContext, model: Any, stage: Stage, stop: StopWhenForgotten | None) -> Any:
    use_cache = getattr(model.config, "use_cache", True)  # which the Trainer turns off
    name, schedule = stage.folder.name, stage.schedule
    every = context.options.save_steps
    every = schedule.epoch if every is None else every
    hidden = not (context.progress and is_main())
    # A map that is read again has put back what was trained for it, and some of that trains anew.
    context.losses[:] = [known for known in context.losses if known.stage != name]
    # What a method trains on the way, as a model to compare with, is not to be chosen from.
    selector = context.selector if name in ("unlearn", "finetune") else None

    def keep(logs: Mapping[str, Any]) -> None:
        known = LossRecord.model_fields
        found = {key: value for key, value in logs.items() if key in known and value is not None}
        context.losses.append(LossRecord(stage=name, lr=logs["learning_rate"], **found))

    with ProgressLine(name, schedule.steps, "step", not hidden) as shown:
        watch = Watch(keep, context.encoder.save, shown)
        arguments = training_arguments(stage, context.options, every)
        callbacks = [watch, *([selector] if selector else []), *([stop] if stop else [])]
        trainer = UnlearnTrainer(model, arguments, stage, callbacks)
        last = last_checkpoint(stage.folder) if context.resume else None
        if last is not None:
            log.info("%s: going on from %s", name, last.name)
            state = json.loads((last / "trainer_state.json").read_bytes())
            for logs in (logs for logs in state["log_history"] if "loss" in logs):
                keep(logs)
        if selector is not None:
            selector.whole_model, selector.epoch = trainer.whole_model, schedule.epoch
            selector.as_saved = partial(as_saved, dtype=context.options.weights_dtype, keep=True)
        if stop is not None:
            stop.whole_model = trainer.whole_model
        run_trainer(trainer, last, stage.folder)
        trained: Any = trainer.whole_model()
    trained.config.use_cache = use_cache
    return trained.eval()
