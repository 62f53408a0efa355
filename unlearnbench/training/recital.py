"""Stop where texts are recited no better than texts that were never seen (Jang et al. 2023, arXiv
2210.01504): mean EL_n and mean MA of what is forgotten are both at or below those of unseen texts
at the target.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from unlearnbench.checkpoints.origin import ChunkRecord, StopRecord
from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import Example
from unlearnbench.metrics.extraction import (
    continuations,
    extraction_likelihood,
    memorization_accuracy,
    rollouts,
)
from unlearnbench.training.passes import decoding

log = logging.getLogger("unlearnbench")

_ROWS = 64  # prefixes that are continued together


@dataclass(frozen=True)
class Recital:
    """How well a model recites some texts: means over them, each in [0, 1]."""

    el: float
    """Over those that are long enough for it."""
    ma: float


@dataclass(frozen=True)
class Reciter:
    """Measures EL_n and MA: of a pair the answer, after prefixes that begin with its question."""

    n: int
    pad: int
    ends: tuple[int, ...]

    def require_long_enough(self, examples: Sequence[Example], which: str) -> None:
        """Raises OptionError where no text has an EL_n."""
        if not any(len(e.ids) - _start(e) >= self.n for e in examples):
            raise OptionError(
                f"--stop-el {self.n}: no {which} text has {self.n} tokens after the first; use a "
                "smaller one"
            )

    def __call__(self, model: Any, examples: Sequence[Example]) -> Recital:
        """One forward pass for each text, and a rollout for each prefix whose next token is not
        the likeliest.
        """
        bare = model.get_base_model() if hasattr(model, "peft_config") else model
        with decoding(bare, self.ends, self.pad):
            found = [self._of(bare, example) for example in examples]
        scores = [el for el, _ in found if el is not None]
        return Recital(statistics.fmean(scores), statistics.fmean(ma for _, ma in found))

    def _of(self, model: Any, example: Example) -> tuple[float | None, float]:
        ids, start = example.ids, _start(example)
        given = torch.tensor([ids], device=model.device)
        predicted = model(input_ids=given, use_cache=False).logits[0].argmax(-1).tolist()
        wrong = rollouts(predicted, ids, start)
        decoded: dict[int, list[int]] = {}
        for at in range(0, len(wrong), _ROWS):
            decoded |= self._decode(model, ids, wrong[at : at + _ROWS])
        told = continuations(ids, decoded, start, self.ends)
        accuracy = memorization_accuracy(predicted, ids, start)
        return extraction_likelihood(ids, told, self.n, start), accuracy

    def _decode(
        self, model: Any, ids: Sequence[int], lengths: Sequence[int]
    ) -> dict[int, list[int]]:
        """The greedy continuations of prefixes, padded on the left to the longest."""
        width = max(lengths)
        rows = [[self.pad] * (width - n) + list(ids[:n]) for n in lengths]
        mask = [[0] * (width - n) + [1] * n for n in lengths]
        output = model.generate(
            input_ids=torch.tensor(rows, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            max_new_tokens=len(ids) - min(lengths),
            use_cache=True,
        )
        found = zip(lengths, output[:, width:].tolist(), strict=True)
        return {n: self._ended(row) for n, row in found}

    def _ended(self, row: list[int]) -> list[int]:
        """Up to its end token; what follows is padding."""
        end = next((at for at, token in enumerate(row) if token in self.ends), len(row))
        return row[: end + 1]


def _start(example: Example) -> int:
    return max(1, example.prompt) if example.is_qa else 1


@dataclass
class StopRule:
    """The thresholds, and how each chunk came to them."""

    reciter: Reciter
    unseen: Recital
    rows: int
    chunks: list[ChunkRecord] = field(default_factory=list)

    def meets(self, found: Recital) -> bool:
        """Whether both are at or below those of unseen texts."""
        return found.el <= self.unseen.el and found.ma <= self.unseen.ma

    def record(self) -> StopRecord:
        """What stands in ``unlearning.json``."""
        of = self.unseen
        chunks = tuple(self.chunks)
        return StopRecord(n=self.reciter.n, el=of.el, ma=of.ma, rows=self.rows, chunks=chunks)


class StopWhenForgotten(TrainerCallback):
    """Looks after each pass over the chunk, and stops its training where it meets the rule."""

    def __init__(self, rule: StopRule, examples: Sequence[Example], epoch: int) -> None:
        self._rule, self._examples, self._epoch, self._ended = rule, examples, epoch, False
        self.whole_model: Callable[[], Any] = lambda: None

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A step behind the last checkpoint: going on from one at the end would train beyond it."""
        is_last = state.global_step == state.max_steps
        if (is_last or state.global_step % self._epoch == 0) and self._look(state):
            control.should_training_stop, control.should_save = True, False

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Going on from a chunk's last step, there is no step to look behind."""
        if not self._ended:
            self._look(state)

    def _look(self, state: Any) -> bool:
        """Whether the rule is met; where that or the last step ends the chunk, it is recorded."""
        step = int(state.global_step)
        found = self._rule.reciter(self.whole_model(), self._examples)
        reached = self._rule.meets(found)
        name, of = f"EL_{self._rule.reciter.n}", self._rule.unseen
        says = "step %d: %s %.4f, to reach %.4f; MA %.4f, to reach %.4f"
        log.info(says, step, name, found.el, of.el, found.ma, of.ma)
        if not reached and step == state.max_steps:
            says = "%s %.4f and MA %.4f are not at or below %.4f and %.4f; the last step is kept"
            log.warning(says, name, found.el, found.ma, of.el, of.ma)
        self._ended = reached or step == state.max_steps
        if self._ended:
            facts: dict[str, Any] = {"sequences": len(self._examples), "steps": step}
            record = ChunkRecord(**facts, el=found.el, ma=found.ma, reached=reached)
            self._rule.chunks.append(record)
        return reached
