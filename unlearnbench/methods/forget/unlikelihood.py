"""Unlikelihood: the probability of every token other than the true one is raised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from unlearnbench.methods.base import About, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import IGNORED, Example, Part, Tensor, learned_logits


@dataclass(frozen=True)
class UnlikelihoodOptions:
    """What is left out."""

    skip_first: bool = option(False, "Leave the first token of each answer out, as CE-U does.")


ABOUT = About(
    name="unlikelihood",
    title="Unlikelihood; with the same gradient as CE-U and as Mechanistic Unlearning's loss",
    equation="L = mean over forget tokens of -log(1 - p(token | before))",
    source="Welleck et al. 2020, arXiv 1908.04319; CE-U, arXiv 2503.01224; Guo et al. 2024, "
    "arXiv 2410.12949",
    options=UnlikelihoodOptions,
    differs="CE-U is written as the cross-entropy with the model's own distribution without the "
    "true token, held constant; that has the same gradient [derived]. Its released code takes the "
    "mean over each accumulated batch. Mechanistic Unlearning's drops tokens of log p < -5.",
)


def examples(context: TrainingContext, options: UnlikelihoodOptions) -> Iterator[Example]:
    """The forget set, with the first token of each pair's answer not learned if so asked."""
    for example in context.forget:
        at = example.prompt
        if options.skip_first and example.is_qa:
            labels = (*example.labels[:at], IGNORED, *example.labels[at + 1 :])
            example = replace(example, labels=labels)
        yield example


def loss(part: Part, options: UnlikelihoodOptions) -> Tensor:
    """In nats a token. By logsumexp(z) - logsumexp(z without the true token), which stays exact
    where the token's probability is nearly 1.
    """
    import torch

    logits, labels = learned_logits(part.logits, part.labels)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).sum() / part.all_tokens
