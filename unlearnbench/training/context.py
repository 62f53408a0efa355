"""What a method is given: the target, the texts, and the trainings that it may ask for."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import PreTrainedModel, set_seed

from unlearnbench.checkpoints.origin import LossRecord, MaskRecord
from unlearnbench.errors import OptionError
from unlearnbench.methods import Method, Piece
from unlearnbench.methods.base import BatchLoss, Ensemble, FrozenModel, Masks, TrainingContext
from unlearnbench.methods.rows import Example, Role
from unlearnbench.training.batches import Rows, make_schedule
from unlearnbench.training.corpus import Encoder
from unlearnbench.training.objective import Combined, Passes, Reference, descent, device
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.output import last_checkpoint, run_trainer
from unlearnbench.training.steps import Watch
from unlearnbench.training.trainer import Stage, UnlearnTrainer, freeze, training_arguments
from unlearnbench.util.process import is_main, process_count

if TYPE_CHECKING:
    from unlearnbench.training.select import Selector

log = logging.getLogger("unlearnbench")


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
    losses: list[LossRecord] = field(default_factory=list)
    """Every step's, filled as it goes."""
    _frozen: dict[str, FrozenModel] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.tokenizer, self.seed = self.encoder.tokenizer, self.options.seed
        self.pad = int(self.tokenizer.pad_token_id or 0)  # masked, so any id serves

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
        self, model: PreTrainedModel, examples: Sequence[Example], stage: str
    ) -> PreTrainedModel:
        return train(self, model, make_stage(self, stage, {"forget": examples}, descent))

    def fit(self, loss: BatchLoss, learns: Callable[[str], bool] | None = None) -> PreTrainedModel:
        stage = make_stage(self, "unlearn", self._sets(self.forget), loss)
        return train(self, self.model, replace(stage, learns=learns))

    def run(self) -> tuple[PreTrainedModel | Ensemble, Masks | None]:
        """What the method makes of the target, and the map where it has one."""
        whole = self.method.piece("whole")
        if whole is not None:
            return whole.module.train(self, whole.options), None
        if not self.method.pieces:
            return self.descend(self.model, self.forget, "finetune"), None
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

        Raises:
            OptionError: an example has fewer alternatives than the loss reads.
        """
        piece = self.method.piece("forget")
        if piece is None:
            return self.forget
        make, about = piece.hook("examples"), piece.about
        examples = self.forget if make is None else tuple(make(self))
        if any(len(example.alternatives) < about.alternatives for example in examples):
            raise OptionError(
                f"{about.name} reads {about.alternatives} other answers beside each text, and a "
                "forget text has fewer"
            )
        return tuple(self._with_logprobs(examples)) if about.sequences else examples

    def _with_logprobs(self, examples: Sequence[Example]) -> list[Example]:
        passes, others = self.passes(), [o for e in examples for o in e.alternatives]
        known = zip(examples, passes.logprobs(self.model, examples), strict=True)
        made = [replace(example, reference=logprob) for example, logprob in known]
        known = zip(others, passes.logprobs(self.model, others), strict=True)
        rest = (replace(other, reference=logprob) for other, logprob in known)
        return [replace(e, alternatives=tuple(next(rest) for _ in e.alternatives)) for e in made]

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


def cast_model(model: Any, dtype: str) -> Any:
    """``model`` in fp32 or bf16; auto: as it is."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return model.to(kinds[dtype]) if dtype in kinds else model


def choose_masks(context: TrainerContext, chooser: Piece) -> Masks:
    """The method's map. Made once: a resumed training and the other processes read it, since
    gradients of GPUs differ from run to run.
    """
    path = context.home / "mask.safetensors"
    if is_main() and not path.exists():
        made: Masks = chooser.module.choose(context, chooser.options)
        save_file({n: m.cpu().contiguous() for n, m in made.items()}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    if process_count() > 1:
        PartialState(cpu=device() == "cpu").wait_for_everyone()
    return load_file(path, device=device())


def mask_record(masks: Masks, model: Any) -> MaskRecord:
    """Count what a mask chose of the weights of ``model``."""
    sizes = {name: model.state_dict()[name].numel() // len(mask) for name, mask in masks.items()}
    chosen = {name: int(mask.sum()) for name, mask in masks.items()}
    return MaskRecord(
        rows=sum(len(mask) for mask in masks.values()),
        chosen_rows=sum(chosen.values()),
        weights=sum(len(mask) * sizes[name] for name, mask in masks.items()),
        chosen_weights=sum(n * sizes[name] for name, n in chosen.items()),
    )


def make_stage(
    context: TrainerContext, name: str, sets: Mapping[Role, Sequence[Example]], loss: BatchLoss
) -> Stage:
    """A training of the context's options on some sets."""
    o, piece = context.options, context.method.piece("forget")
    beside = piece.about.alternatives if piece is not None and loss is not descent else 0
    schedule = make_schedule(sets, o, beside)
    home = context.home / name
    return Stage(name, home, schedule, loss, context.pad, l1=o.l1, noise=o.weight_noise)


def train(context: TrainerContext, model: PreTrainedModel, stage: Stage) -> PreTrainedModel:
    """Train ``model``; an adapter is merged at the end, unless it is to be kept.

    Raises:
        OptionError: the model has no room for a sequence, or nothing would be trained.
        TrainingError: a loss or a gradient was not finite, or a checkpoint could not be written.
    """
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
        config = peft.LoraConfig(
            r=options.lora_rank,
            lora_alpha=2 * options.lora_rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        learner = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
    freeze(learner, stage)
    trained = _run(context, learner, stage)
    is_merged = options.lora_rank is not None and not options.keep_adapter
    return trained.merge_and_unload() if is_merged else trained  # type: ignore[no-any-return]


def _run(context: TrainerContext, model: Any, stage: Stage) -> Any:
    use_cache = getattr(model.config, "use_cache", True)  # which the Trainer turns off
    every = context.options.save_steps
    every = stage.schedule.epoch if every is None else every
    hidden = not (context.progress and is_main())
    # What a method trains on the way, as a model to compare with, is not to be chosen from.
    selector = context.selector if stage.name in ("unlearn", "finetune") else None

    def keep(logs: Mapping[str, Any]) -> None:
        known = LossRecord.model_fields
        found = {key: value for key, value in logs.items() if key in known and value is not None}
        context.losses.append(LossRecord(stage=stage.name, lr=logs["learning_rate"], **found))

    with tqdm(total=stage.schedule.steps, desc=stage.name, unit="step", disable=hidden) as bar:
        watch = Watch(keep, context.tokenizer, bar)
        stage = replace(stage, callbacks=(watch, *([selector] if selector else [])))
        arguments = training_arguments(stage, context.options, every, process_count())
        trainer = UnlearnTrainer(model, arguments, stage)
        last = last_checkpoint(stage.folder) if context.resume else None
        if last is not None:
            log.info("%s: going on from %s", stage.name, last.name)
            state = json.loads((last / "trainer_state.json").read_bytes())
            for logs in (logs for logs in state["log_history"] if "loss" in logs):
                keep(logs)
        if selector is not None:
            selector.whole_model, selector.epoch = trainer.whole_model, stage.schedule.epoch
        run_trainer(trainer, last, stage.folder)
        trained: Any = trainer.whole_model()
    trained.config.use_cache = use_cache
    return trained.eval()
