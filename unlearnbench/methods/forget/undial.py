"""UNDIAL: self-distillation from the target with the true token's logit lowered."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, learned_logits


@dataclass(frozen=True)
class UndialOptions:
    """The lowering."""

    beta: float = option(10.0, "How far the true token's logit is lowered.", least=0)


ABOUT = About(
    name="undial",
    title="Self-distillation with adjusted logits",
    equation="L = mean over forget tokens of CE(softmax(z_target - beta 1_token), softmax(z))",
    source="Dong et al. 2024, arXiv 2402.10052",
    options=UndialOptions,
    references=("target",),
    differs="Released code (open-unlearning d3d7cf9) takes the mean over all positions, padding "
    "and question among them, whose label -100 lowers the logit of another word.",
)


def loss(part: Part, options: UndialOptions) -> Tensor:
    """Cross-entropy with the adjusted distribution at every learned position, in nats a token."""
    import torch

    logits, labels = learned_logits(part.logits, part.labels)
    theirs, _ = learned_logits(part.reference(), part.labels)
    lowered = torch.full_like(labels[:, None], -options.beta, dtype=theirs.dtype)
    wanted = theirs.scatter_add(1, labels[:, None], lowered).softmax(1)
    return -(wanted * logits.log_softmax(1)).sum() / part.all_tokens
