"""Gradient descent on the retain set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.methods.base import About, Knobs, Part, token_logprobs

if TYPE_CHECKING:
    import torch

ABOUT = About(
    name="gdr",
    kind="retain",
    title="Gradient descent on the retain set",
    equation="+ w x mean over retain tokens of -log p(token | before)",
    source="Liu et al. 2022, arXiv 2203.12817; MUSE, arXiv 2407.06460",
    knobs={"retain_weight": 1.0},
    needs_retain=True,
)


def loss(part: Part, knobs: Knobs) -> torch.Tensor:
    """Mean token cross-entropy, without its weight.

    Returns this part's share of the step's mean, shape (), in nats a token.
    """
    return -token_logprobs(part.logits, part.labels).sum() / part.all_tokens
