"""Forward passes outside the Trainer: what the target says of the forget set before a training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from unlearnbench.methods.base import BatchLoss, inner_linears
from unlearnbench.methods.rows import Batch, Example, sequence_logprobs
from unlearnbench.training.batches import Rows, StepSums, as_batch, collate, sums_of

if TYPE_CHECKING:
    import torch


def device() -> str:
    """Where models compute before the Trainer takes them."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Passes:
    """Forward passes of the size under training."""

    size: int
    pad: int

    def _batches(
        self, rows: Sequence[Rows], whole: StepSums | None = None
    ) -> Iterator[tuple[Sequence[Rows], Batch]]:
        """Rows with their tensors on the device. ``whole``: the sums of the step they are of."""
        for at in range(0, len(rows), self.size):
            chunk = rows[at : at + self.size]
            inputs = collate([(row, whole or sums_of(chunk)) for row in chunk], self.pad)
            moved = {n: v.to(device()) if hasattr(v, "to") else v for n, v in inputs.items()}
            moved["sequences"] = {role: v.to(device()) for role, v in inputs["sequences"].items()}
            yield chunk, as_batch(moved)

    def logprobs(self, model: Any, examples: Sequence[Example]) -> list[float]:
        """The log-probability of each sequence's learned tokens."""
        import torch

        model = model.to(device()).eval()
        found: list[float] = []
        with torch.no_grad():
            for _, batch in self._batches([{"forget": (example,)} for example in examples]):
                logits = model(**batch.inputs, use_cache=False).logits
                found += sequence_logprobs(logits, batch.labels).tolist()
        return found

    def relabel(
        self,
        models: Sequence[Any],
        examples: Sequence[Example],
        label: Callable[..., torch.Tensor],
    ) -> tuple[Example, ...]:
        """Examples with labels ``label(*logits of each model, labels)``."""
        import torch

        ready = [model.to(device()).eval() for model in models]
        found: list[Example] = []
        with torch.no_grad():
            for rows, batch in self._batches([{"forget": (example,)} for example in examples]):
                logits = [model(**batch.inputs, use_cache=False).logits for model in ready]
                for row, labels in zip(rows, label(*logits, batch.labels).tolist(), strict=True):
                    (example,) = row["forget"]
                    found.append(replace(example, labels=tuple(labels[: len(example.ids)])))
        return tuple(found)

    def gradient(
        self, model: Any, loss: BatchLoss, rows: Sequence[Rows]
    ) -> dict[str, torch.Tensor]:
        """The gradient of ``loss`` over all rows as one step, for the weight of every inner linear
        layer, float32.
        """
        import torch

        model = model.to(device()).eval()
        weights = {f"{n}.weight": m.weight for n, m in inner_linears(model).items()}
        sums = {n: torch.zeros_like(w, dtype=torch.float32) for n, w in weights.items()}
        for _, batch in self._batches(rows, sums_of(rows)):
            loss(model, batch)["loss"].backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name] += weight.grad
            model.zero_grad(set_to_none=True)
        return sums
