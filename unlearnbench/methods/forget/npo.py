"""Negative preference optimization."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, sequence_logprobs


@dataclass(frozen=True)
class NpoOptions:
    """NPO's numbers."""

    beta: float = option(0.1, "Inverse temperature.", above=0)


ABOUT = About(
    name="npo",
    title="Negative preference optimization",
    equation="L = -(2 / beta) E[log sigmoid(-beta (log pi(y) - log pi_target(y)))]",
    source="Zhang et al. 2024, arXiv 2404.05868, equation 3",
    options=NpoOptions,
    sequences=True,
    differs="Released code of arXiv 2410.16454 takes the mean loss of a batch, not the "
    "log-probability of each sequence.",
)


def loss(part: Part, options: NpoOptions) -> Tensor:
    """NPO on sequence log-probabilities, mean over sequences, in nats / beta."""
    from torch.nn.functional import logsigmoid

    ratio = sequence_logprobs(part.logits, part.labels) - part.target_sequences()
    return -(2 / options.beta) * logsigmoid(-options.beta * ratio).sum() / part.all_rows
