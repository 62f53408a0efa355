"""Staying close to the target model on the retain set."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, learned_logits


@dataclass(frozen=True)
class KlrOptions:
    """The term's factor."""

    retain_weight: float = option(1.0, "Factor of the retain term.", least=0)


ABOUT = About(
    name="klr",
    title="KL divergence from the target on the retain set",
    equation="+ w x mean over retain tokens of KL(p_target(. | before) || p(. | before))",
    source="Maini et al. 2024, arXiv 2401.06121; MUSE, arXiv 2407.06460",
    options=KlrOptions,
    data=("retain",),
    references=("target",),
    differs="Released code of MUSE and of arXiv 2410.16454 gives raw logits to kl_div, which "
    "expects log-probabilities. NPO's paper writes the divergence the other way round.",
)


def loss(part: Part, options: KlrOptions) -> Tensor:
    """KL between next-token distributions at every learned position, times its weight, in nats."""
    # Chosen positions first: log-softmax over the vocabulary is the largest tensor here.
    log_p, log_q = (
        learned_logits(logits, part.labels)[0].log_softmax(dim=-1)
        for logits in (part.logits, part.reference())
    )
    mean = (log_q.exp() * (log_q - log_p)).sum() / part.all_tokens
    return options.retain_weight * mean
