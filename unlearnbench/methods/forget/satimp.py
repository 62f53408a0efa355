"""Gradient ascent weighted by saturation and importance."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, token_logprobs


@dataclass(frozen=True)
class SatImpOptions:
    """The weights' numbers."""

    beta1: float = option(5.0, "Power of p(token) in its weight.", least=0)
    beta2: float = option(1.0, "Power of 1 - p(token) in its weight.", least=0)


ABOUT = About(
    name="satimp",
    title="Gradient ascent weighted by saturation and importance",
    equation="L = mean over forget tokens of p^beta1 (1 - p)^beta2 log p, with the weight held "
    "constant; p = p(token | before)",
    source="Yang et al. 2025, arXiv 2505.11953",
    options=SatImpOptions,
    differs="Released code (open-unlearning d3d7cf9) takes the mean over each accumulated batch; "
    "its configuration (forget 0.1, retain 1) contradicts its README (forget 1, retain 0.1, which "
    "is --retain-weight 0.1 here).",
)


def loss(part: Part, options: SatImpOptions) -> Tensor:
    """In nats a token."""
    import torch

    logprobs = token_logprobs(part.logits, part.labels)
    known = logprobs.detach()
    weights = (options.beta1 * known).exp() * (-torch.expm1(known)).pow(options.beta2)
    return (weights * logprobs).sum() / part.all_tokens
