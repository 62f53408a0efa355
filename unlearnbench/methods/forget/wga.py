"""Gradient ascent weighted by the token's probability."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, token_logprobs


@dataclass(frozen=True)
class WgaOptions:
    """The weights' number."""

    beta: float = option(1.0, "Power of the probability that weighs a token.", least=0)


ABOUT = About(
    name="wga",
    title="Weighted gradient ascent",
    equation="L = mean over forget tokens of p^beta log p, with p^beta held constant; p = "
    "p(token | before)",
    source="Wang et al. 2025, arXiv 2502.19301",
    options=WgaOptions,
    differs="Released code (open-unlearning d3d7cf9) takes the mean over the tokens of each "
    "accumulated batch, here it is that of the whole step.",
)


def loss(part: Part, options: WgaOptions) -> Tensor:
    """Ascent that fades as a token is forgotten. In nats a token."""
    logprobs = token_logprobs(part.logits, part.labels)
    weights = (options.beta * logprobs.detach()).exp()
    return (weights * logprobs).sum() / part.all_tokens
