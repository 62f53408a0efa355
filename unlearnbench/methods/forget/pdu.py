"""PDU's forget loss: every next-token distribution is flattened."""

from __future__ import annotations

from unlearnbench.methods.base import About, NoOptions
from unlearnbench.methods.rows import Part, Tensor, learned_logits

ABOUT = About(
    name="pdu",
    title="Logit flattening of primal-dual unlearning; its multiplier is _dual",
    equation="L = mean over forget tokens of (max_v z_v - mean_v z_v)^2, z the logits that predict "
    "the token",
    source="Entesari et al. 2025, arXiv 2506.05314",
    differs="Released code (open-unlearning d3d7cf9) does not shift its mask by one, so it "
    "flattens the distributions behind the learned tokens.",
)


def loss(part: Part, options: NoOptions) -> Tensor:
    """0 where all words are equally likely; in squared units of a logit."""
    logits, _ = learned_logits(part.logits, part.labels)
    return (logits.amax(1) - logits.mean(1)).square().sum() / part.all_tokens
