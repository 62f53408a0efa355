"""FLAT: loss adjustment by the variational form of an f-divergence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unlearnbench.methods.base import About
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import IGNORED, Part, Tensor, token_logprobs


@dataclass(frozen=True)
class FlatOptions:
    """Which divergence."""

    divergence: Literal["kl", "tv", "pearson"] = option("kl", "The f-divergence.")


ABOUT = About(
    name="flat",
    title="Forget data only loss adjustment",
    equation="L = E[-g(P(other)) + f*(g(P(y)))], P(y) = mean over the tokens of y of their "
    "probability; kl: g(P) = P, f*(g) = exp(g - 1); tv: both tanh(P) / 2; pearson: P, g^2 / 4 + g",
    source="Wang et al. 2025, arXiv 2410.11143",
    options=FlatOptions,
    alternatives=1,
    differs="Released code (bf2ef07) takes the mean over padding and question too, and the "
    "divergence of a batch's mean instead of the mean of divergences.",
)


def loss(part: Part, options: FlatOptions) -> Tensor:
    """Mean over sequences; no unit. It falls with P(other) and rises with P(y)."""
    wanted, known = _certainty(part.others()), _certainty(part)
    if options.divergence == "kl":
        gain, price = wanted, (known - 1).exp()
    elif options.divergence == "tv":
        gain, price = wanted.tanh() / 2, known.tanh() / 2
    else:
        gain, price = wanted, known.square() / 4 + known
    return (price.sum() - gain.sum()) / part.all_rows


def _certainty(part: Part) -> Tensor:
    """(rows,): the mean probability of a row's learned tokens."""
    learned = part.labels[:, 1:] != IGNORED
    probabilities = token_logprobs(part.logits, part.labels).exp() * learned
    return probabilities.sum(1) / learned.sum(1).clamp(min=1)
