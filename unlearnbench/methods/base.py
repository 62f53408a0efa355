"""What method files share: how a method describes itself, its knobs, and what a loss sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from unlearnbench.checkpoints.linear import linear_layers
from unlearnbench.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import nn

IGNORED = -100
"""The label of a position that is not learned: padding, the question before an answer."""


@dataclass(frozen=True)
class Knobs:
    """The numbers that methods read. Each method names those it uses, with its own defaults.

    beta: inverse temperature of NPO and SimNPO. gamma: SimNPO's margin. alpha: strength of a task
    vector or of WHP's logit difference. retain_weight: factor of the retain term. sure_level and
    sure_top: what SURE selects and which share of the weights. rmu_layer: decoder layer whose
    output RMU moves, from 0 (-1: a depth of 7/32). rmu_scale: length of the vector it moves to.
    """

    beta: float = 0.1
    gamma: float = 0.0
    alpha: float = 1.0
    retain_weight: float = 1.0
    sure_level: Literal["row", "module"] = "row"
    sure_top: float = 0.05
    rmu_layer: int = -1
    rmu_scale: float = 6.5


@dataclass(frozen=True)
class About:
    """A method file's own description. ``knobs``: the options it reads and their defaults.

    kind: "forget" (a loss on the forget set), "retain" (a term on the retain set), "mask" (which
    weights may change) or "whole" (a method with its own procedure, which combines with nothing).
    """

    name: str
    kind: Literal["forget", "retain", "mask", "whole"]
    title: str
    equation: str
    source: str
    knobs: Mapping[str, float | int | str] = field(default_factory=dict)
    needs_retain: bool = False
    differs: str = ""
    """Where released code computes something else, in a sentence."""


@dataclass(frozen=True)
class Part:
    """The forget rows, or the retain rows, of one forward pass.

    logits: (rows, width, vocabulary). labels: (rows, width), IGNORED where nothing is learned.
    all_rows, all_tokens: rows and learned tokens of the whole optimizer step, over accumulated
    batches and processes, so that sums over parts divided by them are means over the step.
    reference: the target model's own figures: for forget rows sequence log-probabilities (rows,),
    for retain rows logits (rows, width, vocabulary); None where the method asks for none.
    """

    logits: torch.Tensor
    labels: torch.Tensor
    all_rows: int
    all_tokens: int
    reference: torch.Tensor | None = None


def token_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Log-probability of each learned token given those before it, in at least float32.

    logits: (rows, width, vocabulary); labels: (rows, width), where the label at position t is
    predicted by the logits at t - 1. Returns (rows, width - 1), natural logarithms, exactly 0 where
    the label is IGNORED.
    """
    import torch
    from torch.nn.functional import cross_entropy

    wide = logits if logits.dtype == torch.float64 else logits.float()
    losses = cross_entropy(
        wide[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=IGNORED, reduction="none"
    )
    return -losses


def sequence_logprobs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of ``token_logprobs`` of each row: shape (rows,)."""
    return token_logprobs(logits, labels).sum(dim=1)


def inner_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a model but its output head, by name: what quantization touches.

    Raises:
        CheckpointError: there is none.
    """
    found = linear_layers(model)
    if not found:
        raise CheckpointError(
            f"{type(model).__name__} has no linear layers, which this method works on; use another "
            "method"
        )
    return found
