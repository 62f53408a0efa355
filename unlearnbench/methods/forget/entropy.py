"""Entropy: the model is to be as unsure as it can about the words to forget."""

from __future__ import annotations

from unlearnbench.methods.base import About, NoOptions
from unlearnbench.methods.rows import Part, Tensor, learned_logits

ABOUT = About(
    name="entropy",
    title="Entropy at forget tokens; with _oeu after OEU",
    equation="L = - mean over forget tokens of H(p(. | before))",
    source="after arXiv 2602.00567",
    differs="OEU's is the entropy of an image classifier; of next-token distributions [derived].",
)


def loss(part: Part, options: NoOptions) -> Tensor:
    """In nats a token, from minus the log of the vocabulary's size, all words alike, to 0."""
    logprobs = learned_logits(part.logits, part.labels)[0].log_softmax(dim=-1)
    return (logprobs.exp() * logprobs).sum() / part.all_tokens
