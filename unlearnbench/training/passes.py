"""Forward passes outside the Trainer, in batches of the size under training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import send_to_device

from unlearnbench.checkpoints.load import out_first
from unlearnbench.methods.base import BatchLoss, inner_linears
from unlearnbench.methods.rows import Batch, Example
from unlearnbench.models.generation import plain_config
from unlearnbench.training.batches import Rows, Sums, as_batch, collate, sums_of
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.trainer import device
from unlearnbench.util.process import process_count


@torch.no_grad()
def each(
    options: TrainOptions,
    pad: int,
    models: Sequence[Any],
    examples: Sequence[Example],
    make: Callable[..., torch.Tensor],
) -> list[Any]:
    """``make(*logits of each model, labels)``, row by row."""
    ready = [model.to(device()).eval() for model in models]
    found: list[Any] = []
    for batch in batches(options, pad, [{"forget": (example,)} for example in examples]):
        logits = [model(**batch.inputs, use_cache=False).logits for model in ready]
        found += make(*logits, batch.labels).tolist()
    return found


@torch.no_grad()
def logits(
    options: TrainOptions, pad: int, model: Any, examples: Sequence[Example]
) -> Iterator[torch.Tensor]:
    """Of each example in turn, (tokens, vocabulary)."""
    ready, rest = model.to(device()).eval(), iter(examples)
    for batch in batches(options, pad, [{"forget": (example,)} for example in examples]):
        for row in ready(**batch.inputs, use_cache=False).logits:
            yield row[: len(next(rest).ids)]


def batches(
    options: TrainOptions, pad: int, rows: Sequence[Rows], whole: Sums | None = None
) -> Iterator[Batch]:
    """Rows for forward passes. ``whole``: the sums of the step that they are, whose gradient is
    taken.
    """
    size = options.micro_batch_size or max(1, options.batch_size // process_count())
    if whole is not None and options.gradient_checkpointing:
        size = 1  # short of memory
    for at in range(0, len(rows), size):
        chunk = rows[at : at + size]
        inputs = collate([(row, whole or sums_of(chunk)) for row in chunk], pad)
        yield as_batch(send_to_device(inputs, device()))


@contextmanager
def decoding(model: Any, ends: Collection[int], pad: int) -> Iterator[None]:
    """A block in which a model writes in evaluation, by nothing of its own generation config."""
    was_training, config = model.training, model.generation_config
    model.eval().generation_config = plain_config(ends, pad)
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training).generation_config = config


def linear_gradients(
    options: TrainOptions, pad: int, model: Any, loss: BatchLoss, rows: Sequence[Rows]
) -> dict[str, torch.Tensor]:
    """The gradient of ``loss`` over all rows as one step, float32, (out, in), by the parameter of
    every inner linear weight.
    """
    model = model.to(device()).eval()
    layers = {f"{name}.weight": layer for name, layer in inner_linears(model).items()}
    sums = {n: torch.zeros_like(m.weight, dtype=torch.float32) for n, m in layers.items()}
    for batch in batches(options, pad, rows, sums_of(rows)):
        loss(model, batch)["loss"].backward()
        for name, layer in layers.items():
            if layer.weight.grad is not None:
                sums[name] += layer.weight.grad
        model.zero_grad(set_to_none=True)
    return {name: out_first(layers[name], total) for name, total in sums.items()}
