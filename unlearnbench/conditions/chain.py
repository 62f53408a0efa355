"""A change of the weights, then a precision of what came out: ``prune-wanda-50+bnb-nf4``; or what
changes what is asked, put to a precision: ``hints-3+rtn-int4``.

The first part's weights are those that it has alone, in the wider of the checkpoint's dtype and the
compute dtype; the second meets them as it meets a checkpoint's. Both parts' proofs are recorded.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    file_of,
    find_condition,
)
from unlearnbench.errors import PrecisionError
from unlearnbench.results import FULL

if TYPE_CHECKING:
    from unlearnbench.checkpoints.checkpoint import CheckpointSource

CONDITIONS = ()
FAMILY = ConditionSpec(
    "CHANGE+PRECISION", "chain", "a change of the weights or of what is asked, then a precision"
)

_CHANGES = ("pruned", "noised", "merged", "relearned", "asked")
_PRECISIONS = ("quantized", "stored", "cached")


def parse(name: str) -> ConditionSpec | None:
    """``noise-2+rtn-int4``, each part by any name that it has alone. Raises PrecisionError where a
    part is unknown, the first changes neither weights nor what is asked, or the second is no
    precision.
    """
    if "+" not in name or name == FAMILY.name:
        return None
    parts = [find_condition(part) for part in name.split("+")]
    first, then = parts[0], parts[-1]
    fits = first.kind in _CHANGES and then.kind in _PRECISIONS and then.name != FULL
    if fits and first.searches and then.kind == "cached":
        raise PrecisionError(f"{name}: no search goes through {then.name}, which has no slope")
    if len(parts) != 2 or not fits:
        raise PrecisionError(
            f"{name}: use a change of the weights and then a precision, as noise-2+bnb-nf4, or of "
            "what is asked, as hints-3+bnb-nf4"
        )
    return replace(
        then,
        name=f"{first.name}+{then.name}",
        kind=first.kind if then.kind == "stored" else f"{first.kind}-{then.kind}",
        scheme=f"{first.scheme}; then {then.scheme}",
        calibrated=first.calibrated or then.calibrated,
        learns=first.learns,
        needs_target=first.needs_target,
        needs_control=first.needs_control,
        asks=first.asks,
        searches=first.searches,
        chain=(first, then),
    )


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises what either part raises."""
    import torch

    assert spec.chain is not None  # noqa: S101 - parse sees to it
    first, then = spec.chain
    wide = torch.promote_types(getattr(torch, DTYPES[source.own_dtype]), plan.dtype)
    device = "cpu" if plan.device == "auto" else plan.device
    whole = replace(plan, dtype=wide, device=device, kernel=None)
    model, proof, _ = file_of(first).load(first, source, whole)
    changed = source.holding(model.to("cpu"))  # type: ignore[arg-type]  # torch's own decorator
    return file_of(then).load(then, changed, plan)._replace(first=proof)
