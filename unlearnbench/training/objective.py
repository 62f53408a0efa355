"""Losses over a whole batch, put together from the parts in ``methods/``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from unlearnbench.methods import gdr
from unlearnbench.methods.base import Knobs, Part

if TYPE_CHECKING:
    import torch

    from unlearnbench.methods import Method
    from unlearnbench.training.batches import Batch


class BatchLoss(Protocol):
    """What the Trainer asks of every batch: the terms of the loss, ``loss`` among them, as shares
    of the whole step's, each a tensor of shape ().
    """

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]: ...


@dataclass
class Reference:
    """The target model, to compare with: a second copy, or the model with its adapter off.

    ``copy`` is None for LoRA.
    """

    copy: Any = None

    def __call__(self, model: Any, inputs: dict[str, torch.Tensor], hidden: bool = False) -> Any:
        """The target's output, without gradients and without dropout."""
        import torch

        with torch.no_grad():
            if self.copy is not None:
                self.copy.to(inputs["input_ids"].device)
                return self.copy(**inputs, use_cache=False, output_hidden_states=hidden)
            with _adapter_off(model) as bare:
                return bare(**inputs, use_cache=False, output_hidden_states=hidden)


@contextlib.contextmanager
def _adapter_off(model: Any) -> Iterator[Any]:
    bare = getattr(model, "module", model)  # not through DDP, which expects a backward pass
    was_training = bare.training
    bare.eval()
    try:
        with bare.disable_adapter():
            yield bare
    finally:
        bare.train(was_training)


@dataclass(frozen=True)
class Descent:
    """Plain cross-entropy, token-weighted over the step: fine-tuning and reinforcing."""

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The loss alone."""
        logits = model(**batch.inputs, use_cache=False).logits
        part = Part(logits, batch.labels, batch.all_rows, batch.all_forget_tokens)
        return {"loss": gdr.loss(part, Knobs())}


@dataclass(frozen=True)
class Combined:
    """Forget loss + retain_weight x retain term, from one forward pass over both kinds of rows."""

    method: Method
    knobs: Knobs
    reference: Reference | None = None

    def __call__(self, model: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """The weighted terms and their sum."""
        assert self.method.forget is not None  # noqa: S101  # only such methods are combined
        logits = model(**batch.inputs, use_cache=False).logits
        n = batch.forget_rows
        first = Part(
            logits[:n], batch.labels[:n], batch.all_rows, batch.all_forget_tokens, batch.reference
        )
        forget = self.method.forget.loss(first, self.knobs)
        if self.method.retain is None:
            return {"loss": forget, "forget": forget}
        theirs = None
        if self.reference is not None:
            theirs = self.reference(model, batch.retain_inputs).logits
        second = Part(logits[n:], batch.labels[n:], batch.all_rows, batch.all_retain_tokens, theirs)
        retain = self.knobs.retain_weight * self.method.retain.loss(second, self.knobs)
        return {"loss": forget + retain, "forget": forget, "retain": retain}
