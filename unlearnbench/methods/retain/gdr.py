"""Gradient descent on the retain set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, token_logprobs

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GdrOptions:
    """The term's factor."""

    retain_weight: float = option(1.0, "Factor of the retain term.", least=0)


ABOUT = About(
    name="gdr",
    title="Gradient descent on the retain set",
    equation="+ w x mean over retain tokens of -log p(token | before)",
    source="Liu et al. 2022, arXiv 2203.12817; MUSE, arXiv 2407.06460",
    options=GdrOptions,
    data=("retain",),
)


def loss(part: Part, options: GdrOptions) -> torch.Tensor:
    """Mean token cross-entropy times its weight.

    Returns this part's share of the step's mean, shape (), in nats a token.
    """
    mean = -token_logprobs(part.logits, part.labels).sum() / part.all_tokens
    return options.retain_weight * mean
