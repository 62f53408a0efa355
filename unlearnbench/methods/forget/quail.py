"""A margin in logits beside gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, learned_logits, token_logprobs


@dataclass(frozen=True)
class QuailOptions:
    """The hinge's numbers."""

    quail_margin: float = option(1.0, "How far a token's centred logit is to move.", least=0)
    quail_weight: float = option(1.0, "Factor of the hinge.", least=0)


ABOUT = About(
    name="quail",
    title="After QUAIL: gradient ascent with a margin from the target's logits",
    equation="L = mean over forget tokens of log p + w mean relu(margin - |c - c_target|), c = the "
    "token's logit minus the mean over the vocabulary; QUAIL is quail_gdr",
    source="after Mishra and Mehreen 2026, arXiv 2601.15538",
    options=QuailOptions,
    references=("target",),
    differs="Only an abstract and notes were available, and no code: the hinge on the true token's "
    "centred logit, margin and factor are [derived]. The paper's margin is half a step of a "
    "weight's grid, compared with logits of another unit. A logit that has moved so far does not "
    "imply a weight with another code.",
)


def loss(part: Part, options: QuailOptions) -> Tensor:
    """At the target the margin times its factor, where the hinge's gradient is taken as 0."""
    ascent = token_logprobs(part.logits, part.labels).sum() / part.all_tokens
    if not options.quail_weight:
        return ascent
    ours, theirs = (_centred(logits, part.labels) for logits in (part.logits, part.reference()))
    hinge = (options.quail_margin - (ours - theirs).abs()).relu()
    return ascent + options.quail_weight * hinge.sum() / part.all_tokens


def _centred(logits: Tensor, labels: Tensor) -> Tensor:
    found, tokens = learned_logits(logits, labels)
    return found.gather(1, tokens[:, None])[:, 0] - found.mean(dim=-1)
