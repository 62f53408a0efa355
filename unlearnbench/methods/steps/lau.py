"""Latent adversarial: forgetting under the change of hidden states that best restores the text."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from unlearnbench.methods.base import About, Gradient, OptimizerStep
from unlearnbench.methods.options import option
from unlearnbench.methods.places import at_depth, blocks, hooked
from unlearnbench.methods.rows import IGNORED, Batch, Tensor, token_logprobs


@dataclass(frozen=True)
class LauOptions:
    """The attack's numbers."""

    lau_layer: int = option(-1, "Block whose output is attacked, from 0; below 0: 1/8 of depth.")
    lau_eps: float = option(
        0.1, "Size of the change, as a share of a row's hidden states.", least=0
    )
    lau_steps: int = option(6, "Steps of the attack.", least=1)


ABOUT = About(
    name="lau",
    title="Latent adversarial unlearning: AdvGA is ga_gdr_lau, AdvNPO npo_gdr_lau",
    equation="max_theta min_{|d| <= eps} CE(head(body(x) + d), y): the forget loss at the d that "
    "restores the text best, by projected gradient steps of eps / steps from a random start",
    source="Yuan et al. 2025, arXiv 2408.10682",
    options=LauOptions,
    cost="forward passes over the forget rows, and backward ones down to the block, once a step of "
    "the attack",
    differs="The paper's size is 8 for all positions of a row together, which means nothing at "
    "another width or length; here it is a share of the row's norm there [derived]. The first "
    "token, where models keep a large state, and padding stay. Released code (RobustUnlearning "
    "70a85e8) wipes accumulated gradients, counts padding, and clamps states to the batch's range; "
    "it has no AdvGA.",
)


def gradient(step: OptimizerStep, options: LauOptions) -> Gradient:
    """At size 0 the usual one; the retain term sees no attack."""
    if not options.lau_eps:
        return step.usual()
    return step.forget(partial(attacked, options=options, number=step.number)) + step.retain()


@contextmanager
def attacked(model: Any, batch: Batch, options: LauOptions, number: int) -> Iterator[None]:
    """A block in which the output of one block of ``model`` is moved by the attack on ``batch``;
    frozen models, which compute without gradients, are not.
    """
    found = blocks(model)
    layer = list(found.values())[at_depth(model, options.lau_layer, 1 / 8, "--lau-layer")]
    change = attack(model, layer, batch, options, number)
    with hooked({layer: _adds(change)}):
        yield


def attack(model: Any, layer: Any, batch: Batch, options: LauOptions, number: int) -> Tensor:
    """What is to be added to the layer's output, (rows, width, hidden): of each forget row at most
    ``lau_eps`` of its norm long, 0 at its first token and padding, and for other rows.
    """
    import torch

    seen: list[Tensor] = []
    inputs = batch.inputs_of("forget")
    labels = batch.labels[batch.slice("forget")]

    def keep(module: Any, given: Any, output: Any) -> None:
        seen.append(_tensor(output).detach().clone())

    with torch.no_grad(), hooked({layer: keep}):
        model(**inputs, use_cache=False)
    moves = inputs["attention_mask"].bool().clone()
    moves[:, 0] = False
    wide = torch.promote_types(seen[0].dtype, torch.float32)
    hidden = seen[0].to(wide) * moves[:, :, None]
    size = options.lau_eps * _norms(hidden)
    change = size * _start(hidden, inputs["input_ids"], moves, number)
    counts = (labels[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
    for _ in range(options.lau_steps):
        change.requires_grad_()
        with torch.enable_grad(), hooked({layer: _adds(change)}):
            logits = model(**inputs, use_cache=False).logits
            means = -token_logprobs(logits, labels).sum(dim=1) / counts
            (slope,) = torch.autograd.grad(means.sum(), change)
        slope = slope * moves[:, :, None]
        change = change.detach() - size / options.lau_steps * slope / _norms(slope)
        change *= (size / _norms(change)).clamp(max=1.0)
    found: Tensor = torch.cat(
        [change, change.new_zeros(len(batch.labels) - len(change), *change.shape[1:])]
    )
    return found


def _start(hidden: Tensor, ids: Tensor, moves: Tensor, number: int) -> Tensor:
    """A random direction for each row times a uniform draw from 0 to 1. Of the step's number and
    the row alone, so that how rows are accumulated, and an interruption, change nothing.
    """
    import torch

    drawn = torch.zeros_like(hidden)
    for row, there in enumerate(moves):
        tokens = ids[row][there].tolist()
        generator = torch.Generator().manual_seed(zlib.crc32(repr((number, tokens)).encode()))
        normal = torch.randn(len(tokens), hidden.shape[2], generator=generator)
        share = torch.rand((), generator=generator) / normal.norm().clamp(min=1e-30)
        drawn[row, there] = (share * normal).to(drawn)
    return drawn


def _norms(rows: Tensor) -> Tensor:
    """The L2 norm of each row, (rows, 1, 1), never 0."""
    found: Tensor = rows.flatten(1).norm(dim=1).clamp(min=1e-30)
    return found[:, None, None]


def _adds(change: Tensor) -> Any:
    import torch

    def add(module: Any, given: Any, output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        moved = _tensor(output) + change.to(_tensor(output).dtype)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add


def _tensor(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
