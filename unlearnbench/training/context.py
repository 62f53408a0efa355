"""What a method is given: the target, the texts, and the trainings that it may ask for."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import OptionError
from unlearnbench.methods import Method, Piece
from unlearnbench.methods.base import BatchLoss, FrozenModel, Masks, TrainingContext
from unlearnbench.methods.rows import Example, Role
from unlearnbench.training.batches import Encoder, Length, Rows, make_schedule
from unlearnbench.training.objective import Combined, Reference, descent
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.passes import Passes, device
from unlearnbench.training.resume import last_checkpoint, run_trainer
from unlearnbench.util.process import is_main, process_count

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unlearnbench.training.select import Selector
    from unlearnbench.training.trainer import Stage

log = logging.getLogger("unlearnbench")

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


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
    losses: list[dict[str, Any]] = field(default_factory=list)
    """Every step's, filled as it goes."""
    _frozen: dict[str, FrozenModel] = field(default_factory=dict)

    @property
    def tokenizer(self) -> Any:
        return self.encoder.tokenizer

    @property
    def seed(self) -> int:
        return self.options.seed

    @property
    def pad(self) -> int:
        """Padding is masked, so any id serves."""
        found = self.tokenizer.pad_token_id
        return int(found) if found is not None else 0

    def copy_of_target(self) -> PreTrainedModel:
        return copy.deepcopy(self.model)

    def freeze(self, model: PreTrainedModel | None = None) -> FrozenModel:
        """A model to compare with. The target is a copy, or for LoRA the model, adapter off."""
        import torch

        if model is None and self.options.lora_rank is not None:
            return Reference()
        frozen: Any = (model or self.copy_of_target()).eval().requires_grad_(False)
        name = DTYPES.get(self.options.reference_dtype)
        return Reference(frozen if name is None else frozen.to(getattr(torch, name)))

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

    def reinforce(self) -> PreTrainedModel:
        return self.descend(self.copy_of_target(), self.forget, "reinforce")

    def descend(
        self, model: PreTrainedModel, examples: Sequence[Example], stage: str
    ) -> PreTrainedModel:
        return train(self, model, make_stage(self, stage, {"forget": examples}, descent))

    def fit(self, loss: BatchLoss, learns: Callable[[str], bool] | None = None) -> PreTrainedModel:
        stage = make_stage(self, "unlearn", self._sets(self.forget), loss)
        return train(self, self.model, replace(stage, learns=learns))

    def combine(self) -> tuple[PreTrainedModel, Masks | None]:
        """Train the target with the pieces that the method is made of."""
        chooser, stepper = self.method.piece("masks"), self.method.piece("steps")
        masks = None if chooser is None else choose_masks(self, chooser)
        loss = Combined(self.method, self.references(*self.method.terms))
        stage = make_stage(self, "unlearn", self._sets(self.prepared), loss)
        gradient = None if stepper is None else stepper.hook("gradient")
        return train(self, self.model, replace(stage, masks=masks, gradient=gradient)), masks

    def _sets(self, forget: Sequence[Example]) -> dict[Role, Sequence[Example]]:
        return {"forget": forget, "retain": self.retain, "auxiliary": self.auxiliary}

    @cached_property
    def prepared(self) -> tuple[Example, ...]:
        """The forget set as the forget loss reads it: its own labels, weights and alternatives, and
        the target's log-probability of each sequence.
        """
        return prepare(self)

    def relabel(
        self, models: Sequence[PreTrainedModel], label: Callable[..., torch.Tensor]
    ) -> tuple[Example, ...]:
        return self.passes().relabel(models, self.forget, label)

    def answer(self, example: Example, other: str | Sequence[int]) -> Example:
        return self.encoder.answer(example, other)

    def forget_gradient(self) -> dict[str, torch.Tensor]:
        piece = self.method.piece("forget")
        assert piece is not None  # noqa: S101 - a mask goes with a forget loss
        beside = piece.about.alternatives
        rows: list[Rows] = [
            {"forget": (e,), **({"alternatives": e.alternatives[:beside]} if beside else {})}
            for e in self.prepared
        ]
        loss = Combined(self.method, self.references(piece))
        short_of_memory = self.options.gradient_checkpointing  # then one sequence at a time
        return self.passes(1 if short_of_memory else None).gradient(self.model, loss, rows)

    def passes(self, size: int | None = None) -> Passes:
        """Forward passes outside the Trainer; of the size under training, or of ``size`` rows."""
        o = self.options
        size = size or o.micro_batch_size or max(1, o.batch_size // process_count())
        return Passes(size, self.pad)


def prepare(context: TrainerContext) -> tuple[Example, ...]:
    """The forget set after the method's own data step, with what its loss needs to know of it.

    Raises:
        OptionError: an example has fewer alternatives than the loss reads.
    """
    piece = context.method.piece("forget")
    make = None if piece is None else piece.hook("examples")
    examples = context.forget if make is None else tuple(make(context))
    if piece is None:
        return examples
    if any(len(example.alternatives) < piece.about.alternatives for example in examples):
        raise OptionError(
            f"{piece.about.name} reads {piece.about.alternatives} other answers beside each text, "
            "and a forget text has fewer"
        )
    if not piece.about.sequences:
        return examples
    logprobs = partial(context.passes().logprobs, context.model)
    known = iter(logprobs(examples))
    examples = tuple(replace(example, reference=next(known)) for example in examples)
    others = iter(logprobs([e for x in examples for e in x.alternatives]))
    return tuple(
        replace(x, alternatives=tuple(replace(e, reference=next(others)) for e in x.alternatives))
        for x in examples
    )


def choose_masks(context: TrainerContext, chooser: Piece) -> Masks:
    """The method's map. Made once: a resumed training and the other processes read it, since
    gradients of GPUs differ from run to run.
    """
    from accelerate import PartialState
    from safetensors.torch import load_file, save_file

    path = context.home / "mask.safetensors"
    if is_main() and not path.exists():
        made: Masks = chooser.module.choose(context, chooser.options)
        save_file({n: m.cpu().contiguous() for n, m in made.items()}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    if process_count() > 1:
        PartialState(cpu=device() == "cpu").wait_for_everyone()
    return load_file(path, device=device())


def make_stage(
    context: TrainerContext, name: str, sets: Mapping[Role, Sequence[Example]], loss: BatchLoss
) -> Stage:
    """A training of the context's options on some sets."""
    from unlearnbench.training.trainer import Stage

    o, piece = context.options, context.method.piece("forget")
    beside = piece.about.alternatives if piece is not None and loss is not descent else 0
    length = Length(o.epochs, o.max_steps, o.batch_size)
    schedule = make_schedule(sets, length, o.seed, o.pack, beside)
    return Stage(
        name, context.home / name, schedule, loss, context.pad, l1=o.l1, noise=o.weight_noise
    )


def train(context: TrainerContext, model: PreTrainedModel, stage: Stage) -> PreTrainedModel:
    """Train ``model``; an adapter is merged at the end, unless it is to be kept.

    Raises:
        OptionError: the model has no room for a sequence, or nothing would be trained.
        TrainingError: a loss or a gradient was not finite, or a checkpoint could not be written.
    """
    from unlearnbench.training.trainer import freeze

    longest = max(len(item.rows["forget"][0].ids) for item in stage.schedule.items)
    room = getattr(context.model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(room, int) and longest > room:
        raise OptionError(
            f"a sequence of {longest} tokens does not fit the model's context of {room}; "
            "use a smaller --pack or --max-length"
        )
    if context.options.lora_rank is not None:
        model = _with_adapter(model, context.options)
    freeze(model, stage)
    trained: Any = _run(context, model, stage)
    if context.options.lora_rank is None or context.options.keep_adapter:
        return trained  # type: ignore[no-any-return]
    return trained.merge_and_unload()  # type: ignore[no-any-return]


def _with_adapter(model: PreTrainedModel, options: TrainOptions) -> PreTrainedModel:
    import peft
    from transformers import set_seed

    assert options.lora_rank is not None  # noqa: S101 - asked for only with a rank
    set_seed(options.seed)  # its first matrix is random
    config = peft.LoraConfig(
        r=options.lora_rank,
        lora_alpha=2 * options.lora_rank,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    adapted: Any = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    return adapted  # type: ignore[no-any-return]


def _run(context: TrainerContext, model: PreTrainedModel, stage: Stage) -> PreTrainedModel:
    from tqdm import tqdm

    from unlearnbench.training.callbacks import Watch
    from unlearnbench.training.trainer import UnlearnTrainer, training_arguments

    use_cache = getattr(model.config, "use_cache", True)  # which the Trainer turns off
    every = context.options.save_steps
    every = stage.schedule.epoch if every is None else every
    hidden = not (context.progress and is_main())
    # What a method trains on the way, as a model to compare with, is not to be chosen from.
    selector = context.selector if stage.name in ("unlearn", "finetune") else None

    def keep(logs: dict[str, Any]) -> None:
        context.losses.append({"stage": stage.name, **logs})

    with tqdm(total=stage.schedule.steps, desc=stage.name, unit="step", disable=hidden) as bar:
        watch = Watch(keep, context.encoder.tokenizer, bar)
        stage = replace(stage, callbacks=(watch, *([selector] if selector else [])))
        arguments = training_arguments(stage, context.options, every, process_count())
        trainer = UnlearnTrainer(model, arguments, stage)
        last = last_checkpoint(stage.folder) if context.resume else None
        if last is not None:
            log.info("%s: going on from %s", stage.name, last.name)
            history = json.loads((last / "trainer_state.json").read_bytes())["log_history"]
            for logs in history:
                if "loss" in logs:
                    keep(logs)
        if selector is not None:
            selector.whole_model = trainer.whole_model
            selector.epoch = stage.schedule.epoch
        run_trainer(trainer, last, stage.folder)
        trained: Any = trainer.whole_model()
    trained.config.use_cache = use_cache
    return trained.eval()  # type: ignore[no-any-return]
