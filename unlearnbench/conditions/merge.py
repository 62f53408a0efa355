"""Merging with the target: every weight is (1-A) x the target's + A x the checkpoint's, so that 1
is the checkpoint and 0 the target (as Wortsman et al. 2022, arXiv 2109.01903, merge two models).

Of an adapter the base stands in the target's place unless one is given: W + A (alpha/r) BA. It is
computed in double precision from weights as they are stored, then rounded to the compute dtype. All
tensors are merged, embeddings and norms too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.checkpoints.limits import empty_model
from unlearnbench.checkpoints.load import out_first
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    Materials,
    ModelWithProof,
    Option,
    canonical_number,
)
from unlearnbench.conditions.proof import load_state
from unlearnbench.errors import NotInForceError, PrecisionError
from unlearnbench.runs.fingerprint import tokenizer_sha256

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.source import Source

CONDITIONS = ()
FAMILY = ConditionSpec(
    "merge-A",
    "merged",
    "(1-A) x the target's weights + A x the checkpoint's",
    needs_target=True,
    needs_control=True,
)


def parse(name: str) -> ConditionSpec | None:
    """``merge-0.5``: A lies between 0, the target, and 1, the checkpoint."""
    match = re.fullmatch(r"merge-(\d{1,9}(?:\.\d{1,9})?)", name, re.ASCII)
    if match is None:
        return None
    share = canonical_number(match.group(1))
    if float(share) > 1:
        raise PrecisionError(f"{name}: use a share from 0, the target, to 1, the checkpoint")
    return replace(
        FAMILY,
        name=f"merge-{share}",
        scheme=f"(1-{share}) x the target's weights + {share} x the checkpoint's",
        options={"share": float(share)},
    )


def settle(spec: ConditionSpec, source: Source, materials: Materials) -> Mapping[str, Option]:
    """The target's hash. Raises PrecisionError where there is no target, or one of another shape or
    tokenizer.
    """
    what, target = f"{spec.name} of {source.files.path}", materials.target
    if source.ensemble is not None:
        raise PrecisionError(f"{what}: it holds several models, and a merge is of one")
    if source.adapter_kept:
        raise PrecisionError(f"{what}: it scales the adapter in its base; use --adapter merge")
    if target is None:
        base = source.checkpoint.base
        if base is None:
            raise PrecisionError(f"{spec.name} needs the target; give --target-model PATH")
        return {"target_sha256": base.weights_sha256}
    if target.stored is not None:
        raise PrecisionError(f"--target-model {target.files.path} is quantized already")
    ours, theirs = source.checkpoint, target.checkpoint
    if tokenizer_sha256(ours, theirs) != tokenizer_sha256(theirs, ours):
        raise PrecisionError(f"{what}: --target-model {target.files.path} has another tokenizer")
    own, other = empty_model(source.config), empty_model(target.config)
    if own is not None and other is not None:
        _require_alike(spec, own, other)
    return {"target_sha256": theirs.weights_sha256}


def _require_alike(spec: ConditionSpec, own: nn.Module, other: nn.Module) -> None:
    """Raise PrecisionError where two models have weights of other names or shapes."""
    ours, theirs = (
        {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
        for model in (own, other)
    )
    odd = sorted(name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name))
    if odd:
        raise PrecisionError(
            f"{spec.name}: {odd[0]} has shape {ours.get(odd[0], 'none')} in the checkpoint and "
            f"{theirs.get(odd[0], 'none')} in the target; is --target-model what it came from?"
        )


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises NotInForceError where a tensor in force does not lie between both models' at A, and
    PrecisionError as ``settle``.
    """
    share, target = float(spec.options["share"]), plan.materials.target
    if target is None:
        named = source.options.updated({"base": None, "revision": None})
        target = CheckpointSource(source.full, None, named, keep=False)
    _require_alike(spec, source.model(), target.model())
    tied, theirs_tied = (part.model().config.tie_word_embeddings for part in (source, target))
    if tied and not theirs_tied:
        raise PrecisionError(
            f"{spec.name}: the checkpoint ties its output head, the target does not"
        )
    ours, theirs = source.state_dict(), target.state_dict()
    mixed = {name: mix(theirs[name], own, share) for name, own in ours.items()}

    def judge(name: str, now: torch.Tensor, own: torch.Tensor) -> Mapping[str, float]:
        other = out_first(source.model().get_submodule(name), theirs[f"{name}.weight"])
        return {"merge_share": _place(spec, name, now.cpu(), own.cpu(), other)}

    made = load_state(spec, source, plan, mixed, judge)
    for name, now in made.model.state_dict().items():
        if now.is_floating_point():
            _place(spec, name, now.cpu(), ours[name], theirs[name])
    target.release()
    return made


def mix(theirs: torch.Tensor, own: torch.Tensor, share: float) -> torch.Tensor:
    """(1 - share) x theirs + share x own; where the share is 0 or 1, one of both as it is."""
    if share in (0.0, 1.0) or not own.is_floating_point():
        return own if share else theirs
    import torch

    wide = torch.promote_types(torch.promote_types(theirs.dtype, own.dtype), torch.float32)
    return ((1 - share) * theirs.double() + share * own.double()).to(wide)


def _place(
    spec: ConditionSpec, name: str, now: torch.Tensor, own: torch.Tensor, theirs: torch.Tensor
) -> float:
    """Where ``now`` lies between both: 0 is theirs, 1 is own; by projection on their difference."""
    import torch

    share, rounding = float(spec.options["share"]), torch.finfo(now.dtype).eps
    way, gone = own.double() - theirs.double(), now.double() - theirs.double()
    length, room = float(way.norm()), rounding * float(now.double().norm())
    found = float((way * gone).sum()) / length**2 if length else share
    aside = float((gone - found * way).norm())
    if not abs(found - share) * length <= room or not aside <= room:
        raise NotInForceError(f"{spec.name}: {name} lies at {found:.4g} between both models")
    return found
