"""Gradient ascent on the forget set."""

from __future__ import annotations

from unlearnbench.methods.base import About, NoOptions
from unlearnbench.methods.rows import Part, Tensor, token_logprobs

ABOUT = About(
    name="ga",
    title="Gradient ascent",
    equation="L = mean over forget tokens of log p(token | before)",
    source="Jang et al. 2023, arXiv 2210.01504; MUSE, arXiv 2407.06460",
)


def loss(part: Part, options: NoOptions) -> Tensor:
    """Minus the mean token cross-entropy: falls without bound as the text gets less likely.
    In nats a token.
    """
    return token_logprobs(part.logits, part.labels).sum() / part.all_tokens
