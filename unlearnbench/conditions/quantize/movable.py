"""What rounding will leave of a training, told before its first step from dtype, learning rate,
steps and the target's weights.

A number of bf16 with |w| in [2^e, 2^(e+1)) has neighbours 2^(e-7) away (fp16: 2^(e-10)). A step of
AdamW is lr x u with u at most about 1, and one below half that distance rounds away. So weights of
``limit`` and above stand still, and those below freeze when they have grown to it. Where a
quantizer's zero bin is wider than that, no weight that can move ever leaves its bin. How much of an
update is left is found by making one up: every sampled weight drifts, as measured weights do on
average, and is rounded after each step; then both ends are quantized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.forecast import forecast
from unlearnbench.conditions.quantize.overlap import product

if TYPE_CHECKING:
    import torch

# Significant bits of the dtypes whose rounding holds weights still.
SIGNIFICANT = {"bf16": 8, "fp16": 11}
COMMON = ("rtn-int8", "rtn-int4", "bnb-nf4", "bnb-fp4")
_ROWS, _WEIGHTS = 16, 2**18  # at most so many rows of a matrix, about so many weights in all
_STEPS = 500  # made up at most
# Of u: the spread of its mean over a training, and that of a step about it. Weights of the demo's
# models went 0.11 to 0.15 of the sum of learning rates (docs/why.md).
_DRIFT, _SPREAD = 0.15, 0.3
_KEPT = 0.7  # survival below which help is named
_HELP = "--weights-dtype fp32 or bf16-sr"
_RATES = (2, 4, 8)


def limit(lr: float, dtype: str) -> float:
    """The magnitude that no weight of ``dtype`` grows beyond in steps of less than ``lr``, and from
    which on weights stand still; at it, a weight can still shrink. A power of two.
    """
    return float(2.0 ** math.ceil(math.log2(lr) + SIGNIFICANT[dtype]))


def rows_of(matrices: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Some rows of matrices (out, in), evenly spread, in float32: bins are those of a row or less.
    Of a large model not every matrix is read.
    """
    every = list(matrices)
    columns = sum(w.shape[1] for w in every)
    count = max(1, min(_ROWS, _WEIGHTS // columns))
    chosen = every[:: -(-columns // _WEIGHTS)]
    return [w.detach()[:: -(-len(w) // count)].float().cpu() for w in chosen]


def imagined(
    weights: Sequence[torch.Tensor], dtype: str, rates: Sequence[float]
) -> list[torch.Tensor]:
    """The weights after a made-up training: one step for each learning rate."""
    import torch

    from unlearnbench.util.bf16 import round_nearest, round_stochastic

    generator = torch.Generator().manual_seed(0)
    moved = []
    for weight in weights:
        now = round_nearest(weight) if dtype.startswith("bf16") else weight.clone()
        drift = torch.empty_like(now).normal_(0, _DRIFT, generator=generator)
        for lr in rates:
            step = torch.empty_like(now).normal_(0, _SPREAD, generator=generator)
            now -= lr * (step + drift).clamp_(-1, 1)
            if dtype == "bf16-sr":
                now = round_stochastic(now, generator)
            elif dtype != "fp32":
                now = now.to(torch.float16 if dtype == "fp16" else torch.bfloat16).float()
        moved.append(now)
    return moved


def survival(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], spec: ConditionSpec
) -> float | None:
    """Update survival over some rows; None where nothing was updated."""
    kept = update = 0.0
    for one, two in zip(ours, theirs, strict=True):
        ends = [conditions.encode(spec, weight).values for weight in (one, two)]
        kept += product(ends[0], ends[1], one, two)
        update += product(one, two, one, two)
    return kept / update if update else None


def tell(
    weights: Sequence[torch.Tensor], dtype: str, rates: Sequence[float], precisions: Sequence[str]
) -> list[str]:
    """A line on what a training can move, and one a precision on what is left of it. dtype: fp32,
    bf16, fp16, bf16-rounded or bf16-sr; rates: the learning rate of each step.
    """
    peak, kind = max(rates), dtype.removesuffix("-rounded")
    head = f"weights in {dtype} at --lr {peak:g}: all inner weights can move"
    if kind in SIGNIFICANT:
        highest = limit(peak, kind)
        moving = sum(int((w.abs() <= highest).sum()) for w in weights)
        share = 100 * moving / sum(w.numel() for w in weights)
        head = f"weights in {dtype} at --lr {peak:g}: {share:.3g}% of the inner weights can move, "
        head += f"those up to {highest:.3g}"

    @cache
    def made(times: int) -> list[torch.Tensor]:
        return imagined(weights, dtype, [times * lr for lr in rates[:_STEPS]])

    lines = [head]
    for spec in conditions.resolve(precisions):
        found = survival(made(1), weights, spec)
        if found is None:
            larger = _larger(weights, spec, made, peak)
            return [head, f"no sampled weight moves in {len(rates)} steps; use {_either(larger)}"]
        line = "before training, by a made-up one: " + forecast(found, spec.name)
        if found < _KEPT and kind in SIGNIFICANT:
            line += f"; more is kept by {_either(_larger(weights, spec, made, peak))}"
        lines.append(line)
    return lines


def _either(larger: Sequence[str]) -> str:
    return " or ".join([_HELP, *larger])


def _larger(
    weights: Sequence[torch.Tensor],
    spec: ConditionSpec,
    made: Callable[[int], list[torch.Tensor]],
    lr: float,
) -> list[str]:
    """The least of some larger learning rates that keeps nearly all. made: the weights after a
    made-up training at so many times ``lr``.
    """
    for times in _RATES:
        found = survival(made(times), weights, spec)
        if found is not None and 0.9 <= found < 1.1:
            return [f"--lr {times * lr:g}"]
    return []
