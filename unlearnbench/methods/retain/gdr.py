"""Gradient descent on the retain set."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, token_logprobs


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


def loss(part: Part, options: GdrOptions) -> Tensor:
    """Mean token cross-entropy times its weight, in nats a token."""
    mean = -token_logprobs(part.logits, part.labels).sum() / part.all_tokens
    return options.retain_weight * mean
