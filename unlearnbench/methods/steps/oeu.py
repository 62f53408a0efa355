"""Orthogonal: what would change the retain term is taken out of the forget gradient."""

from __future__ import annotations

from unlearnbench.methods.base import About, Gradient, NoOptions, OptimizerStep

ABOUT = About(
    name="oeu",
    title="After OEU: forget gradient orthogonal to that of the retain term",
    equation="g_forget - (g_forget . g_retain / |g_retain|^2) g_retain + g_retain; entropy_gdr_oeu "
    "with its loss",
    source="after arXiv 2602.00567",
    cost="two passes in place of one, and one more copy of the gradient",
    differs="The paper is for quantized image classifiers, and only its abstract was available: "
    "one projection over all weights, and the retain term descended along beside it, are ours "
    "[derived].",
)


def gradient(step: OptimizerStep, options: NoOptions) -> Gradient:
    """Where the retain term has no gradient, the forget gradient as it is."""
    forget, retain = step.forget(), step.retain()
    size = retain.dot(retain)
    share = forget.dot(retain) / size if size else 0.0
    across = {name: g - share * retain.of[name] for name, g in forget.of.items()}
    return Gradient(forget.terms, across) + retain
