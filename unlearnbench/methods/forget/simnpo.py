"""Simple NPO: without a reference model, normalized by length."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import IGNORED, Part, Tensor, sequence_logprobs


@dataclass(frozen=True)
class SimNpoOptions:
    """SimNPO's numbers."""

    beta: float = option(2.5, "Inverse temperature.", above=0)
    gamma: float = option(0.0, "Margin of the reward.", least=0)


ABOUT = About(
    name="simnpo",
    title="Simple negative preference optimization",
    equation="L = -(2 / beta) E[log sigmoid(-(beta / |y|) log pi(y) - gamma)]",
    source="Fan et al. 2024, arXiv 2410.07163",
    options=SimNpoOptions,
)


def loss(part: Part, options: SimNpoOptions) -> Tensor:
    """SimNPO, mean over sequences; |y| counts the learned tokens of a sequence."""
    from torch.nn.functional import logsigmoid

    lengths = (part.labels[:, 1:] != IGNORED).sum(dim=1).clamp(min=1)
    reward = options.beta / lengths * sequence_logprobs(part.logits, part.labels)
    return -(2 / options.beta) * logsigmoid(-reward - options.gamma).sum() / part.all_rows
