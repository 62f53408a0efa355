"""SURE: only the weights that matter most for the forget set may change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from unlearnbench.errors import MetricError
from unlearnbench.methods.base import About, Knobs

if TYPE_CHECKING:
    import torch

ABOUT = About(
    name="sure",
    kind="mask",
    title="Saliency-based unlearning with a large learning rate",
    equation="theta = theta_target + mask x change; mask = 1 for the modules or rows whose forget "
    "gradient at theta_target has the largest norms",
    source="Zhang et al. 2025, arXiv 2410.16454",
    knobs={"sure_level": "row", "sure_top": 0.05},
    differs="Released code builds the mask and never applies it to a gradient. The paper selects "
    "modules; rows of weight matrices are the default here.",
)


def choose_rows(gradients: Mapping[str, torch.Tensor], knobs: Knobs) -> dict[str, torch.Tensor]:
    """Choose the top share of rows, or of whole matrices, by the L2 norm of their gradient.

    gradients: of the forget loss, by parameter name, each (out, in). Returns a bool tensor (out,)
    for each name. Of n candidates ceil(sure_top x n) are chosen, ties by order; a candidate with
    gradient 0 never is.

    Raises:
        MetricError: a gradient is not finite, or all are 0.
    """
    import torch

    norms = {name: _norms(grad, knobs.sure_level) for name, grad in gradients.items()}
    flat = torch.cat(list(norms.values()))
    if not bool(flat.isfinite().all()) or not bool(flat.any()):
        raise MetricError("the forget gradient is 0 or not finite, so it cannot choose weights")
    count = math.ceil(knobs.sure_top * len(flat) - 1e-9)
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[torch.argsort(flat, descending=True, stable=True)[:count]] = True
    chosen &= flat > 0
    parts = chosen.split([len(part) for part in norms.values()])
    return {
        name: part.expand(len(gradients[name])).clone()
        for name, part in zip(norms, parts, strict=True)
    }


def _norms(gradient: torch.Tensor, level: str) -> torch.Tensor:
    rows = gradient.double().square().sum(dim=1)
    return (rows if level == "row" else rows.sum(dim=0, keepdim=True)).sqrt()
