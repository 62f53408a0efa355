"""Which weights a training can move, and whether they can leave their bins: told before its first
step from dtype, learning rate, steps and the target's weights.

A number of bf16 with |w| in [2^e, 2^(e+1)) has neighbours 2^(e-7) away (fp16: 2^(e-10)). A step of
AdamW is lr x u with u at most about 1, and one below half that distance rounds away. So weights of
``limit`` and above stand still, and those below freeze when they have grown to it. Where a
quantizer's zero bin is wider than that, no weight that can move ever leaves its bin: the quantized
model stays the quantized target. In fp32, and with stochastic rounding, every weight moves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec

if TYPE_CHECKING:
    import torch

# Significant bits of the dtypes whose rounding holds weights still.
SIGNIFICANT = {"bf16": 8, "fp16": 11}
COMMON = ("rtn-int8", "rtn-int4", "bnb-nf4", "bnb-fp4")
_ROWS = 16  # read of each matrix
_HELD = 0.1  # share of what can move that leaves its bin, below which bins hold
_RATES = (2, 4, 8, 16, 32)  # times the learning rate, looked at where it is too small


def limit(lr: float, dtype: str) -> float:
    """The magnitude that no weight of ``dtype`` grows beyond in steps of less than ``lr``, and from
    which on weights stand still; at it, a weight can still shrink. A power of two.
    """
    return float(2.0 ** math.ceil(math.log2(lr) + SIGNIFICANT[dtype]))


@dataclass(frozen=True)
class Reach:
    """What can happen to some weights at one precision."""

    movable: float
    """Share of them that can move at all."""
    leaving: float
    """Share of those that can get another code."""


def reach(
    weights: Sequence[torch.Tensor], spec: ConditionSpec, highest: float, way: float
) -> Reach:
    """Of weights of shape (out, in): those at or below ``highest`` can move, not beyond it, and not
    farther than ``way`` from where they are.
    """
    movable = leaving = 0
    for weight in weights:
        can_move = weight.abs() <= highest
        codes = conditions.encode(spec, weight).codes
        leaves = can_move.new_zeros(can_move.shape)
        for step in (way, -way):
            there = (weight + step).clamp(-highest, highest)
            leaves |= conditions.encode(spec, there.where(can_move, weight)).codes != codes
        movable += int(can_move.sum())
        leaving += int((leaves & can_move).sum())
    total = sum(weight.numel() for weight in weights)
    return Reach(movable / total, leaving / movable if movable else 0.0)


def rows_of(matrices: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Some rows of each matrix, evenly spread, in float32: bins are those of a row or of less."""
    return [w.detach()[:: -(-len(w) // _ROWS)].float().cpu() for w in matrices]


def forecast(
    weights: Sequence[torch.Tensor], dtype: str, lr: float, way: float, precisions: Sequence[str]
) -> list[str]:
    """Lines on what a training can move, one a precision. dtype: fp32, bf16, fp16, bf16-rounded or
    bf16-sr; lr: the highest learning rate; way: the sum of the learning rates of all steps.
    """
    kind = dtype.removesuffix("-rounded")
    if kind not in SIGNIFICANT:
        return [
            f"weights in {dtype} at --lr {lr:g}: all inner weights can move, each a little, and "
            f"rounding keeps that on average ({', '.join(precisions)})"
        ]
    lines = []
    for spec in conditions.resolve(precisions):
        found = reach(weights, spec, limit(lr, kind), way)
        line = (
            f"weights in {dtype} at --lr {lr:g}, {spec.name}: {100 * found.movable:.3g}% of the "
            f"inner weights can move, {100 * found.leaving:.3g}% of those out of their bin"
        )
        if found.leaving < _HELD:
            line += "; expect that what is forgotten comes back, and use " + " or ".join(
                ["--weights-dtype fp32", *_larger(weights, spec, kind, lr, way)]
            )
        lines.append(line)
    return lines


def _larger(
    weights: Sequence[torch.Tensor], spec: ConditionSpec, kind: str, lr: float, way: float
) -> list[str]:
    """The least of some larger learning rates at which half of what can move can leave its bin."""
    for times in _RATES:
        if reach(weights, spec, limit(times * lr, kind), times * way).leaving >= 0.5:
            return [f"--lr {times * lr:g}"]
    return []
