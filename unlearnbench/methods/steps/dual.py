"""Primal-dual: the retain term's factor is a multiplier that holds it below a limit."""

from __future__ import annotations

from dataclasses import dataclass

from unlearnbench.methods.base import About, Gradient, OptimizerStep
from unlearnbench.methods.options import option


@dataclass(frozen=True)
class DualOptions:
    """The multiplier's numbers."""

    dual_start: float = option(100.0, "The multiplier at first.", least=0)
    dual_rate: float = option(5.0, "How fast the multiplier follows the retain term.", least=0)
    dual_limit: float = option(0.3, "The retain term's limit, in nats a token.", least=0)


ABOUT = About(
    name="dual",
    title="Primal-dual unlearning",
    equation="minimize L_forget subject to L_retain <= limit: gradient of L_forget + m L_retain; "
    "then m <- max(0, m + rate (L_retain - limit))",
    source="Entesari et al. 2025, arXiv 2506.05314",
    options=DualOptions,
    differs="The paper's limit is (1 + a) times the target's retain loss; here, as in released "
    "code (open-unlearning d3d7cf9), it is a number. The multiplier moves once an optimizer step, "
    "there with each accumulated batch, and there is no warm-up of several epochs.",
)


def gradient(step: OptimizerStep, options: DualOptions) -> Gradient:
    """Of the Lagrangian at the multiplier as it stands, which then moves; under --survive the limit
    is on the mean over the weights as they are and as they are rounded.
    """
    forget, retain = step.forget(), step.retain()
    factor = step.state.setdefault("multiplier", options.dual_start)
    over = sum(retain.terms.values()) / step.whole - options.dual_limit
    step.state["multiplier"] = max(0.0, factor + options.dual_rate * over)
    return forget + retain * factor
