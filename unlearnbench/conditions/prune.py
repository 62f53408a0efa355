"""Pruning by magnitude: in every linear layer but the output head, the share S (percent) of its
weights that are smallest in magnitude is set to 0 (Han et al. 2015, arXiv 1506.02626).

Of a matrix of n weights exactly k = round(S n / 100) are pruned (a half rounds to the even number);
of weights of one magnitude those that come first go first, output after output. The others keep
their bits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from unlearnbench.conditions.base import ConditionSpec, LoadPlan, ModelWithProof, canonical_number
from unlearnbench.conditions.proof import load_changed
from unlearnbench.errors import NotInForceError, PrecisionError

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

CONDITIONS = ()
FAMILY = ConditionSpec(
    "prune-magnitude-S", "pruned", "the S% of each matrix that are smallest in magnitude set to 0"
)


def parse(name: str) -> ConditionSpec | None:
    """``prune-magnitude-30``, ``prune-magnitude-12.5``: the percentage lies between 0 and 100."""
    match = re.fullmatch(r"prune-magnitude-(\d{1,9}(?:\.\d{1,9})?)", name, re.ASCII)
    if match is None:
        return None
    percent = canonical_number(match.group(1))
    share = float(percent)
    if not 0 < share < 100:
        raise PrecisionError(f"{name}: use a percentage above 0 and below 100")
    return replace(
        FAMILY,
        name=f"prune-magnitude-{percent}",
        scheme=FAMILY.scheme.replace("S%", f"{percent}%"),
        options={"share": share, "ties": "first in memory first"},
    )


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises NotInForceError where another number of weights is 0, or others are changed."""
    share = float(spec.options["share"])

    def judge(name: str, now: torch.Tensor, own: torch.Tensor) -> Mapping[str, float]:
        own = own.to(now.dtype)
        zero = now == 0
        pruned = zero & (own != 0)
        expected = max(pruned_count(own.numel(), share) - int((own == 0).sum()), 0)
        kept = own.masked_fill(pruned, 0)
        if int(pruned.sum()) != expected or not now.equal(kept):
            raise NotInForceError(f"{spec.name}: module {name} is not pruned as asked")
        if pruned.any() and not zero.all() and own[pruned].abs().max() > own[~zero].abs().min():
            raise NotInForceError(f"{spec.name}: module {name} lost more than its smallest weights")
        return {"zero_share": float(zero.double().mean())}

    return load_changed(spec, source, plan, lambda _, weight: prune(weight, share), judge)


def pruned_count(n: int, share: float) -> int:
    """How many of ``n`` weights ``share`` percent are."""
    return round(Fraction(str(share)) * n / 100)


def prune(weight: torch.Tensor, share: float) -> torch.Tensor:
    """A copy of ``weight`` with the smallest of its values, ``share`` percent of them, set to 0."""
    k = pruned_count(weight.numel(), share)
    if k == 0:
        return weight
    flat = weight.detach().flatten()
    magnitude = flat.abs().float()
    limit = magnitude.kthvalue(k).values
    pruned = magnitude < limit
    ties = (magnitude == limit).nonzero().flatten()
    pruned[ties[: k - int(pruned.sum())]] = True
    return flat.masked_fill(pruned, 0).reshape(weight.shape)
