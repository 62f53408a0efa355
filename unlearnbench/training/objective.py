"""Losses over a whole batch, put together from the pieces in ``methods/``, and forward passes
outside the Trainer: what the target says of the forget set before a training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from accelerate.utils import send_to_device

from unlearnbench.methods import Method, Piece
from unlearnbench.methods.base import BatchLoss, FrozenModel, inner_linears
from unlearnbench.methods.retain import gdr
from unlearnbench.methods.rows import Batch, Example, Part, Role, sequence_logprobs
from unlearnbench.training.batches import Rows, StepSums, as_batch, collate, sums_of


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
        )


def device() -> str:
    """Where models compute before the Trainer takes them."""
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Passes:
    """Forward passes of so many rows."""

    size: int
    pad: int

    def _batches(self, rows: Sequence[Rows], whole: StepSums | None = None) -> Iterator[Batch]:
        """Rows as tensors on the device. ``whole``: the sums of the step they are of."""
        for at in range(0, len(rows), self.size):
            chunk = rows[at : at + self.size]
            inputs = collate([(row, whole or sums_of(chunk)) for row in chunk], self.pad)
            yield as_batch(send_to_device(inputs, device()))

    @torch.no_grad()
    def _each(
        self,
        models: Sequence[Any],
        examples: Sequence[Example],
        make: Callable[..., torch.Tensor],
    ) -> list[Any]:
        """``make(*logits of each model, labels)``, row by row."""
        ready = [model.to(device()).eval() for model in models]
        found: list[Any] = []
        for batch in self._batches([{"forget": (example,)} for example in examples]):
            logits = [model(**batch.inputs, use_cache=False).logits for model in ready]
            found += make(*logits, batch.labels).tolist()
        return found

    def logprobs(self, model: Any, examples: Sequence[Example]) -> list[float]:
        """The log-probability of each sequence's learned tokens."""
        return self._each([model], examples, sequence_logprobs)

    def relabel(
        self,
        models: Sequence[Any],
        examples: Sequence[Example],
        label: Callable[..., torch.Tensor],
    ) -> tuple[Example, ...]:
        """Examples with labels ``label(*logits of each model, labels)``."""
        rows = zip(examples, self._each(models, examples, label), strict=True)
        return tuple(replace(e, labels=tuple(labels[: len(e.ids)])) for e, labels in rows)

    def gradient(
        self, model: Any, loss: BatchLoss, rows: Sequence[Rows]
    ) -> dict[str, torch.Tensor]:
        """The gradient of ``loss`` over all rows as one step, for the weight of every inner linear
        layer, float32.
        """
        model = model.to(device()).eval()
        weights = {f"{n}.weight": m.weight for n, m in inner_linears(model).items()}
        sums = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in weights.items()}
        for batch in self._batches(rows, sums_of(rows)):
            loss(model, batch)["loss"].backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name] += weight.grad
            model.zero_grad(set_to_none=True)
        return sums
