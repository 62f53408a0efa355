"""Invariance: forgetting is to hold under later training on unrelated texts."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About, Gradient, OptimizerStep
from unlearnbench.methods.options import option
from unlearnbench.methods.rows import Part, Tensor, learned_logits


@dataclass(frozen=True)
class IluOptions:
    """The penalty's factor."""

    ilu_weight: float = option(0.1, "Factor of the invariance penalty.", least=0)


ABOUT = About(
    name="ilu",
    title="After ILU: invariance to training on unrelated texts",
    equation="+ w m^2, m = d/ds of the mean cross-entropy of softmax(s z) over tokens of "
    "--auxiliary at s = 1, which is the mean of sum_v p_v z_v - z_token",
    source="after Wang et al. 2025, arXiv 2506.01339",
    options=IluOptions,
    data=("auxiliary",),
    cost="a forward and a backward pass over the third set",
    differs="The paper writes w o theta; that w scales the output, as in IRMv1 (arXiv 1907.02893), "
    "is [memory]. No code of ILU was released (its repository is a copy of another method's). m is "
    "the mean over a whole step, squared after that.",
)


def slope(part: Part) -> Tensor:
    """m: at s = 1, how the mean cross-entropy grows with a factor s of all logits."""
    logits, labels = learned_logits(part.logits, part.labels)
    expected = (logits.softmax(dim=-1) * logits).sum(dim=-1)
    return (expected - logits.gather(1, labels[:, None])[:, 0]).sum() / part.all_tokens


def gradient(step: OptimizerStep, options: IluOptions) -> Gradient:
    """At weight 0 the usual one; of m^2 it is 2 m times that of m."""
    usual = step.usual()
    if not options.ilu_weight:
        return usual
    mean = step.term("auxiliary", slope)
    value = mean.terms["auxiliary"]
    return usual + Gradient(
        {"auxiliary": options.ilu_weight * value**2},
        {name: 2 * options.ilu_weight * value * grad for name, grad in mean.of.items()},
    )
