"""Sharpness-aware: the forget gradient is taken where the forget loss is largest nearby."""

from __future__ import annotations

import math
from dataclasses import dataclass

from unlearnbench.methods.base import About, Gradient, OptimizerStep
from unlearnbench.methods.options import option


@dataclass(frozen=True)
class SamOptions:
    """SAM's number."""

    rho: float = option(0.01, "Length of the step to the worst weights nearby.", least=0)


ABOUT = About(
    name="sam",
    title="Sharpness-aware unlearning",
    equation="gradient of L_forget at theta + d plus that of the retain term at theta, d = rho g / "
    "|g|, g = gradient of L_forget at theta; |.| over all weights that learn",
    source="Fan et al. 2025, arXiv 2502.05374",
    options=SamOptions,
    cost="one more forward and backward pass over the forget rows, and a copy of the weights",
    differs="Released code (Unlearn-Smooth fc655ba) adds d and takes it away again, which in bf16 "
    "does not give the weights back, and its first pass wipes what was accumulated; here weights "
    "are copied and d is that of the whole step. Its MUSE losses read raw logits. Its other "
    "smoothings (noise, gradient norm, curvature, averaging) are not here.",
)


def gradient(step: OptimizerStep, options: SamOptions) -> Gradient:
    """At radius 0 the usual one."""
    import torch

    if not options.rho:
        return step.usual()
    first = step.forget()
    norm = math.sqrt(first.dot(first))
    with torch.no_grad(), step.restored():
        for name, weight in step.weights.items():
            weight += options.rho / norm * first.of[name] if norm else 0.0
        worst = step.forget()
    return worst + step.retain()
