"""SURE: only the weights that matter most for the forget set may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from unlearnbench.errors import MetricError
from unlearnbench.methods.base import About, Masks, TrainingContext
from unlearnbench.methods.options import option
from unlearnbench.methods.places import share_of
from unlearnbench.methods.rows import Tensor


@dataclass(frozen=True)
class SureOptions:
    """SURE's numbers."""

    sure_level: Literal["row", "module"] = option("row", "What SURE selects.")
    sure_top: float = option(0.05, "Share of rows or modules that may change.", above=0, most=1)


ABOUT = About(
    name="sure",
    title="Saliency-based unlearning with a large learning rate",
    equation="theta = theta_target + mask x change; mask = 1 for the modules or rows whose forget "
    "gradient at theta_target has the largest norms",
    source="Zhang et al. 2025, arXiv 2410.16454",
    options=SureOptions,
    cost="a forward and a backward pass over the forget set before training",
    differs="Released code builds the mask and never applies it to a gradient. The paper selects "
    "modules; rows of weight matrices are the default here.",
)


def choose(context: TrainingContext, options: SureOptions) -> Masks:
    """The rows with the largest gradients of the method's own forget loss at the target."""
    return choose_rows(context.forget_gradient(), options)


def choose_rows(gradients: Mapping[str, Tensor], options: SureOptions) -> dict[str, Tensor]:
    """Choose the top share of rows, or of whole matrices, by the L2 norm of their gradient.

    gradients: of the forget loss, by parameter name, each (out, in). Returns a bool tensor (out,)
    for each name. Of n candidates ceil(sure_top x n) are chosen, ties by order; a candidate with
    gradient 0 never is. Raises MetricError where a gradient is not finite, or all are 0.
    """
    import torch

    squares = {name: grad.double().square().sum(dim=1) for name, grad in gradients.items()}
    if options.sure_level == "module":
        squares = {name: rows.sum(dim=0, keepdim=True) for name, rows in squares.items()}
    norms = {name: part.sqrt() for name, part in squares.items()}
    flat = torch.cat(list(norms.values()))
    if not bool(flat.isfinite().all()) or not bool(flat.any()):
        raise MetricError("the forget gradient is 0 or not finite, so it cannot choose weights")
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    order = torch.argsort(flat, descending=True, stable=True)
    chosen[order[: share_of(len(flat), options.sure_top)]] = True
    chosen &= flat > 0
    parts = chosen.split([len(part) for part in norms.values()])
    return {
        name: part.expand(len(gradients[name])).clone()
        for name, part in zip(norms, parts, strict=True)
    }
