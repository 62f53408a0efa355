"""Where methods work: the target model, the data, and what every training shares."""

from __future__ import annotations

import copy
import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import OptionError
from unlearnbench.methods import Method
from unlearnbench.methods.base import Knobs, Part, inner_linears, sequence_logprobs
from unlearnbench.training.batches import Example, Item, Length, Schedule, collate, make_schedule
from unlearnbench.training.checkpoints import (
    last_checkpoint,
    run_trainer,
)
from unlearnbench.training.objective import BatchLoss, Combined, Descent, Reference
from unlearnbench.training.options import TrainOptions
from unlearnbench.util.process import is_main, process_count

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from unlearnbench.training.select import Selector
    from unlearnbench.training.trainer import Learns, Masks

log = logging.getLogger("unlearnbench")

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class PairOutput:
    """WHP's result: two models, whose logits are combined when they answer."""

    baseline: PreTrainedModel
    reinforced: PreTrainedModel
    alpha: float


@dataclass
class Workshop:
    """What a method is given. ``model`` is the target, in the dtype under training.

    home: a folder for checkpoints of the training. losses: every step's, filled as it goes.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    forget: tuple[Example, ...]
    retain: tuple[Example, ...]
    options: TrainOptions
    knobs: Knobs
    home: Path
    resume: bool = False
    progress: bool = False
    selector: Selector | None = None
    losses: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> str:
        """Where models compute before the Trainer takes them."""
        import torch

        return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"

    def copy_of_target(self) -> PreTrainedModel:
        """A second model with the target's weights."""
        return copy.deepcopy(self.model)

    def reference(self) -> Reference:
        """The target to compare with: a frozen copy, or for LoRA the model with its adapter off."""
        import torch

        if self.options.lora_rank is not None:
            return Reference()
        frozen: Any = self.copy_of_target().eval().requires_grad_(False)
        name = DTYPES.get(self.options.reference_dtype)
        return Reference(frozen if name is None else frozen.to(getattr(torch, name)))

    def reinforce(self) -> PreTrainedModel:
        """A copy of the target, trained further on the forget set."""
        return self.descend(self.copy_of_target(), self.forget, "reinforce")

    def descend(
        self, model: PreTrainedModel, examples: Sequence[Example], stage: str
    ) -> PreTrainedModel:
        """Train ``model`` on ``examples`` by plain cross-entropy."""
        return self._fit(model, self._schedule(examples, ()), Descent(), stage)

    def fit_with_retain(self, loss: BatchLoss, learns: Learns) -> PreTrainedModel:
        """Train the target on both sets; only parameters whose name ``learns`` accepts change."""
        schedule = self._schedule(self.forget, self.retain)
        return self._fit(self.model, schedule, loss, "unlearn", learns=learns)

    def combine(self, method: Method) -> tuple[PreTrainedModel, Masks | None]:
        """Train the target with a forget loss, and what else the method is made of."""
        masks = self.masks(method) if method.mask is not None else None
        forget = self.with_references() if method.needs_sequences else self.forget
        reference = self.reference() if method.needs_logits else None
        loss = Combined(method, self.knobs, reference)
        schedule = self._schedule(forget, self.retain if method.retain is not None else ())
        return self._fit(self.model, schedule, loss, "unlearn", masks=masks), masks

    def _schedule(self, forget: Sequence[Example], retain: Sequence[Example]) -> Schedule:
        o = self.options
        length = Length(o.epochs, o.max_steps, o.batch_size)
        return make_schedule(forget, retain, length, o.seed, o.pack)

    def _fit(
        self,
        model: PreTrainedModel,
        schedule: Schedule,
        loss: BatchLoss,
        stage: str,
        *,
        learns: Learns | None = None,
        masks: Masks | None = None,
    ) -> PreTrainedModel:
        from unlearnbench.training.trainer import Stage, freeze

        self._require_fit(schedule)
        model = self._with_lora(model)
        freeze(model, learns, masks)
        folder = self.home / stage
        kept = Stage(stage, folder, schedule, loss, self.pad, masks)
        kept = replace(kept, l1=self.options.l1, noise=self.options.weight_noise)
        model = self._train(model, kept)
        if self.options.lora_rank is None or self.options.keep_adapter:
            return model
        merged: Any = model
        return merged.merge_and_unload()  # type: ignore[no-any-return]

    def _require_fit(self, schedule: Schedule) -> None:
        longest = max(len(item.forget.ids) for item in schedule.items)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if isinstance(context, int) and longest > context:
            raise OptionError(
                f"a sequence of {longest} tokens does not fit the model's context of {context}; "
                "use a smaller --pack or --max-length"
            )

    def _train(self, model: PreTrainedModel, stage: Any) -> PreTrainedModel:
        from tqdm import tqdm

        from unlearnbench.training.trainer import UnlearnTrainer, Watch, training_arguments

        use_cache = getattr(model.config, "use_cache", True)  # which the Trainer turns off
        every = self.options.save_steps
        if every is None:
            every = stage.schedule.epoch
        show = self.progress and is_main()
        with tqdm(
            total=stage.schedule.steps, desc=stage.name, unit="step", disable=not show
        ) as bar:
            keep = lambda logs: self.losses.append({"stage": stage.name, **logs})  # noqa: E731
            callbacks = (Watch(keep, self.tokenizer, bar), *filter(None, [self.selector]))
            stage = replace(stage, callbacks=callbacks)
            arguments = training_arguments(stage, self.options, every, process_count())
            trainer = UnlearnTrainer(model, arguments, stage)
            last = last_checkpoint(stage.folder) if self.resume else None
            if last is not None:
                log.info("%s: going on from %s", stage.name, last.name)
                self._take_losses(stage.name, last)
            if self.selector is not None:
                self.selector.whole_model = trainer.whole_model
                self.selector.epoch = stage.schedule.epoch
            run_trainer(trainer, last, stage.folder)
            trained: Any = trainer.whole_model()
        trained.config.use_cache = use_cache
        return trained.eval()  # type: ignore[no-any-return]

    def _take_losses(self, stage: str, folder: Path) -> None:
        history = json.loads((folder / "trainer_state.json").read_bytes())["log_history"]
        self.losses += [{"stage": stage, **logs} for logs in history if "loss" in logs]

    @property
    def pad(self) -> int:
        """Padding is masked, so any id serves."""
        found = self.tokenizer.pad_token_id
        return int(found) if found is not None else 0

    def _with_lora(self, model: PreTrainedModel) -> PreTrainedModel:
        if self.options.lora_rank is None:
            return model
        import peft
        from transformers import set_seed

        set_seed(self.options.seed)  # its first matrix is random
        rank = self.options.lora_rank
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            lora_dropout=0.0,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
        )
        adapted: Any = peft.get_peft_model(model, config, autocast_adapter_dtype=False)
        return adapted  # type: ignore[no-any-return]

    def chunks(self, examples: Sequence[Example]) -> list[list[Example]]:
        """Examples in forward passes of the size under training."""
        size = self.options.micro_batch_size or max(1, self.options.batch_size // process_count())
        return [list(examples[at : at + size]) for at in range(0, len(examples), size)]

    def _tensors(self, chunk: Sequence[Example]) -> dict[str, Any]:
        drawn = [(Item(example, None, 0), (0, 0, 0)) for example in chunk]
        batch = collate(drawn, self.pad)
        return {name: batch[name].to(self.device) for name in _INPUTS}

    def _logits(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        inputs = {name: batch[name] for name in _INPUTS[:2]}
        logits: torch.Tensor = model(**inputs, use_cache=False).logits
        return logits

    def with_references(self) -> tuple[Example, ...]:
        """The forget set with the target's log-probability of each sequence, computed once."""
        import torch

        model = self.model.to(self.device).eval()  # type: ignore[arg-type]
        found: list[float] = []
        with torch.no_grad():
            for chunk in self.chunks(self.forget):
                batch = self._tensors(chunk)
                found += sequence_logprobs(self._logits(model, batch), batch["labels"]).tolist()
        return tuple(replace(e, reference=r) for e, r in zip(self.forget, found, strict=True))

    def relabel(
        self,
        baseline: PreTrainedModel,
        reinforced: PreTrainedModel,
        label: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> tuple[Example, ...]:
        """The forget set with labels made from both models' logits and the old labels."""
        import torch

        models: list[Any] = [baseline.eval(), reinforced.eval()]
        found: list[Example] = []
        with torch.no_grad():
            for chunk in self.chunks(self.forget):
                batch = self._tensors(chunk)
                first, second = (self._logits(m.to(self.device), batch) for m in models)
                rows = label(first, second, batch["labels"]).tolist()
                found += [
                    replace(e, labels=tuple(row[: len(e.ids)]))
                    for e, row in zip(chunk, rows, strict=True)
                ]
        return tuple(found)

    def masks(self, method: Method) -> Masks:
        """SURE's map, from the whole forget set's gradient at the target. Made once: a resumed
        training and the other processes read it, since gradients of GPUs differ from run to run.
        """
        from accelerate import PartialState
        from safetensors.torch import load_file, save_file

        path = self.home / "mask.safetensors"
        if is_main() and not path.exists():
            made = {name: mask.cpu().contiguous() for name, mask in self._choose(method).items()}
            save_file(made, path.with_suffix(".new"))
            path.with_suffix(".new").replace(path)
        if process_count() > 1:
            PartialState(cpu=self.device == "cpu").wait_for_everyone()
        return load_file(path, device=self.device)

    def _choose(self, method: Method) -> Masks:
        from unlearnbench.methods.sure import choose_rows

        forget = self.with_references() if method.needs_sequences else self.forget
        gradients = self._forget_gradient(method, forget)
        return choose_rows(gradients, self.knobs)

    def _forget_gradient(
        self, method: Method, forget: Sequence[Example]
    ) -> dict[str, torch.Tensor]:
        import torch

        model: Any = self.model.to(self.device).eval()  # type: ignore[arg-type]
        weights = {f"{n}.weight": m.weight for n, m in inner_linears(model).items()}
        sums = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in weights.items()}
        tokens = sum(example.learned for example in forget)
        assert method.forget is not None  # noqa: S101  # a mask goes with a forget loss
        short = self.options.gradient_checkpointing  # of memory, then: one sequence at a time
        for chunk in [[e] for e in forget] if short else self.chunks(forget):
            batch = self._tensors(chunk)
            known = [e.reference for e in chunk if e.reference is not None]
            reference = torch.tensor(known, device=self.device) if known else None
            part = Part(self._logits(model, batch), batch["labels"], len(forget), tokens, reference)
            method.forget.loss(part, self.knobs).backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name] += weight.grad
            model.zero_grad(set_to_none=True)
        return sums


_INPUTS = ("input_ids", "attention_mask", "labels")
