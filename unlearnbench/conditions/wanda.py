"""Pruning by weights and activations, Wanda (Sun et al. 2023, arXiv 2306.11695): a weight's score
is |W_ij| x sqrt(mean of x_j^2), x_j the layer's input over the calibration texts' tokens, and of
every row (one output) the S percent with the lowest scores are set to 0, or N of every M inputs.

Of a row of n weights exactly round(S n / 100) are pruned (a half rounds to the even number); of
equal scores those that come first go first. Inputs are those of the whole unpruned model, met in
one pass; the released code meets each block's behind the blocks that it has pruned already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import linear_layers, out_first
from unlearnbench.conditions.base import ConditionSpec, LoadPlan, ModelWithProof, canonical_number
from unlearnbench.conditions.proof import load_changed
from unlearnbench.conditions.prune import pruned_count
from unlearnbench.conditions.quantize.calibration import token_batches
from unlearnbench.errors import NotInForceError, PrecisionError

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_WORDS = "of each row set to 0 whose |weight| x RMS input is smallest"


def _spec(name: str, what: str, options: Mapping[str, float | int | str]) -> ConditionSpec:
    ties = {"ties": "first in a row first"}
    return ConditionSpec(
        name, "pruned", f"{what} {_WORDS}", options={**options, **ties}, calibrated=True
    )


CONDITIONS = ()
FAMILY = _spec("prune-wanda-S", "the S% (or 2of4, 4of8)", {})
_PATTERNS = {
    f"prune-wanda-{n}of{m}": _spec(
        f"prune-wanda-{n}of{m}", f"the {n} of every {m} inputs", {"pruned": n, "of": m}
    )
    for n, m in ((2, 4), (4, 8))
}


def parse(name: str) -> ConditionSpec | None:
    """``prune-wanda-50``: the percentage lies between 0 and 100; ``prune-wanda-2:4`` is
    ``prune-wanda-2of4``.
    """
    match = re.fullmatch(r"prune-wanda-(\d{1,9}(?:\.\d{1,9})?)", name, re.ASCII)
    if match is None:
        return _PATTERNS.get(name.replace(":", "of"))
    percent = canonical_number(match.group(1))
    if not 0 < float(percent) < 100:
        raise PrecisionError(f"{name}: use a percentage above 0 and below 100")
    return _spec(f"prune-wanda-{percent}", f"the {percent}%", {"share": float(percent)})


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises NotInForceError where another number of weights of a row or group is 0, or others are
    changed, and PrecisionError where inputs make no whole groups or no text reaches a layer.
    """
    for name, layer in linear_layers(source.model()).items():
        inputs = out_first(layer, layer.weight).shape[1]
        if inputs % _group(spec, inputs):
            group = spec.options["of"]
            raise PrecisionError(f"{spec.name}: {name} has {inputs} inputs, no groups of {group}")
    means = mean_squares(spec, source, plan)

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return prune_rows(spec, weight, means[name])

    def judge(name: str, now: torch.Tensor, own: torch.Tensor) -> Mapping[str, float]:
        group, kept = _group(spec, own.shape[1]), own.to(now.dtype)
        zero = now == 0
        pruned = zero & (kept != 0)
        if not now.equal(kept.masked_fill(pruned, 0)):
            raise NotInForceError(f"{spec.name}: module {name} has weights that are not its own")
        scores = score(own, means[name].to(own.device))
        worst, best = scores.masked_fill(~pruned, 0), scores.masked_fill(zero, float("inf"))
        count, places = pruned_in(spec, group), (-1, group)
        exact = pruned.reshape(places).sum(1).le(count) & zero.reshape(places).sum(1).ge(count)
        smallest = worst.reshape(places).amax(1) <= best.reshape(places).amin(1)
        if not bool((exact & smallest).all()):
            raise NotInForceError(f"{spec.name}: module {name} is not pruned as asked")
        return {"zero_share": float(zero.double().mean())}

    return load_changed(spec, source, plan, change, judge)


def mean_squares(
    spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan
) -> dict[str, torch.Tensor]:
    """The mean of x_j^2 over all tokens of the calibration texts, of every linear layer but the
    output head: shape (inputs,), in double precision on CPU. Raises PrecisionError where no text
    reaches a layer, NotInForceError where an input is not finite.
    """
    import torch

    calibration = plan.materials.calibration
    assert calibration is not None  # noqa: S101 - load.prepare sees to it
    model = source.build(plan.dtype, plan.device)
    sums, counts = dict[str, torch.Tensor](), dict[str, int]()

    def watch(name: str, given: tuple[Any, ...]) -> None:
        rows = given[0].detach().reshape(-1, given[0].shape[-1]).double()
        sums[name] = sums.get(name, 0) + rows.square().sum(0).cpu()
        counts[name] = counts.get(name, 0) + len(rows)

    layers = linear_layers(model)
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda _, given, name=name: watch(name, given))
    with torch.inference_mode():
        for batch in token_batches(source, calibration):
            inputs = {key: ids.to(model.device) for key, ids in batch.items()}
            model(**inputs, use_cache=False)
    for name in layers:
        if name not in sums:
            raise PrecisionError(
                f"{spec.name}: no calibration text reaches {name}; give more texts"
            )
        if not bool(sums[name].isfinite().all()):
            raise NotInForceError(f"{spec.name}: an input of {name} is NaN or infinite")
    return {name: total / counts[name] for name, total in sums.items()}


def score(weight: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """|W_ij| x sqrt(mean x_j^2), of the shape of ``weight``, (out, in), in double precision."""
    return weight.detach().double().abs() * means.sqrt()


def pruned_in(spec: ConditionSpec, group: int) -> int:
    """How many of ``group`` weights are pruned."""
    if "of" in spec.options:
        return int(spec.options["pruned"])
    return pruned_count(group, float(spec.options["share"]))


def prune_rows(spec: ConditionSpec, weight: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """A copy of ``weight``, (out, in), with the lowest scores of each row or group set to 0."""
    import torch

    group = _group(spec, weight.shape[1])
    scores = score(weight, means.to(weight.device)).reshape(-1, group)
    lowest = scores.argsort(dim=1, stable=True)[:, : pruned_in(spec, group)]
    pruned = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, lowest, True)
    return weight.detach().masked_fill(pruned.reshape(weight.shape), 0)


def _group(spec: ConditionSpec, inputs: int) -> int:
    """How many inputs are pruned by themselves."""
    return int(spec.options.get("of", inputs))
