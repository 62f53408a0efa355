"""Simple NPO: without a reference model, normalized by length."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.methods.base import IGNORED, About, Knobs, Part, sequence_logprobs

if TYPE_CHECKING:
    import torch

ABOUT = About(
    name="simnpo",
    kind="forget",
    title="Simple negative preference optimization",
    equation="L = -(2 / beta) E[log sigmoid(-(beta / |y|) log pi(y) - gamma)]",
    source="Fan et al. 2024, arXiv 2410.07163",
    knobs={"beta": 2.5, "gamma": 0.0},
)


def loss(part: Part, knobs: Knobs) -> torch.Tensor:
    """SimNPO, mean over sequences; |y| counts the learned tokens of a sequence.

    Returns this part's share of the step's mean, shape ().
    """
    from torch.nn.functional import logsigmoid

    lengths = (part.labels[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
    reward = knobs.beta / lengths * sequence_logprobs(part.logits, part.labels)
    return -(2 / knobs.beta) * logsigmoid(-reward - knobs.gamma).sum() / part.all_rows
