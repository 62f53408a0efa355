"""Negative preference optimization."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.errors import OptionError
from unlearnbench.methods.base import About, Knobs, Part, sequence_logprobs

if TYPE_CHECKING:
    import torch

ABOUT = About(
    name="npo",
    kind="forget",
    title="Negative preference optimization",
    equation="L = -(2 / beta) E[log sigmoid(-beta (log pi(y) - log pi_target(y)))]",
    source="Zhang et al. 2024, arXiv 2404.05868, equation 3",
    knobs={"beta": 0.1},
    differs="Released code of arXiv 2410.16454 takes the mean loss of a batch, not the "
    "log-probability of each sequence.",
)
NEEDS_SEQUENCES = True
"""Part.reference holds the target's sequence log-probabilities."""


def loss(part: Part, knobs: Knobs) -> torch.Tensor:
    """NPO on sequence log-probabilities, mean over sequences.

    Returns this part's share of the step's mean, shape (), in nats / beta.

    Raises:
        OptionError: the part has no reference.
    """
    from torch.nn.functional import logsigmoid

    if part.reference is None:
        raise OptionError("npo needs the target's log-probabilities")
    ratio = sequence_logprobs(part.logits, part.labels) - part.reference
    return -(2 / knobs.beta) * logsigmoid(-knobs.beta * ratio).sum() / part.all_rows
