"""Losses over a whole batch, put together from the pieces in ``methods/``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from unlearnbench.methods import Method, Piece
from unlearnbench.methods.base import FrozenModel
from unlearnbench.methods.retain import gdr
from unlearnbench.methods.rows import Batch, Part, Role


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


def cast_model(model: Any, dtype: str) -> Any:
    """``model`` in fp32 or bf16; auto: as it is."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16}
    return model.to(kinds[dtype]) if dtype in kinds else model
