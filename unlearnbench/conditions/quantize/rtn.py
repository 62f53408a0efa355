"""Uniform round-to-nearest, our own, in 8 to 2 bits: per output channel or per group of columns,
symmetric or with a zero point.

Weights are quantized and dequantized into the compute dtype: the numbers are those of an integer
kernel with exact products, on any device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    Levels,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    groups,
)
from unlearnbench.conditions.proof import load_changed

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_STEP_BITS = 32


def _spec(bits: int, group: int | None, asym: bool) -> ConditionSpec:
    name = f"rtn-int{bits}" + (f"-g{group}" if group else "") + ("-asym" if asym else "")
    kind = "with zero point" if asym else "symmetric absmax"
    per = f"per group of {group} columns" if group else "per output channel"
    constants = _STEP_BITS + (bits if asym else 0)
    return ConditionSpec(
        name,
        "quantized",
        f"uniform round-to-nearest, {kind} {per}",
        "unlearnbench",
        {"group_size": group or "channel", "symmetric": not asym},
        bits=bits,
        bits_per_weight=bits + (constants / group if group else 0),
        kernels=("dequantized",),
    )


CONDITIONS = tuple(
    _spec(bits, group, asym)
    for bits in (8, 6, 5, 4, 3, 2)
    for asym in (False, True)
    for group in (None, 32, 64, 128)
)


class Quantized(NamedTuple):
    """Codes (out, in), step (groups, 1) and zero point (groups, 1; 0 where symmetric), all float32.
    A group is ``size`` columns of one row, row after row; the last of a row may be shorter.
    """

    codes: torch.Tensor
    step: torch.Tensor
    zero: torch.Tensor
    size: int

    def values(self) -> torch.Tensor:
        """The weight in force, (out, in): (code - zero point) x step."""
        return (self.codes - self.spread(self.zero)) * self.spread(self.step)

    def spread(self, constants: torch.Tensor) -> torch.Tensor:
        """One constant a group, for every weight."""
        rows, columns = self.codes.shape
        return constants.reshape(rows, -1).repeat_interleave(self.size, dim=1)[:, :columns]


def quantize(
    weight: torch.Tensor, bits: int, group: int | None = None, asym: bool = False
) -> Quantized:
    """Round a weight of shape (out, in) to ``bits``.

    Symmetric: step = absmax / (2^(bits-1) - 1), code = clamp(round-half-even(w / step)) to
    +-(2^(bits-1) - 1). With zero point: step = (max - min) / (2^bits - 1), where the range always
    holds 0, so that the zero point, round(-min / step), is itself a code; code = clamp(round(w /
    step) + zero) to 0 .. 2^bits - 1. An all-zero group has codes 0. Source: docs/protocol.md.
    """
    exact = weight.float()
    parts = groups(exact, group)
    if asym:
        low, high = parts.amin(1, True).clamp(max=0), parts.amax(1, True).clamp(min=0)
        bottom, top = 0, 2**bits - 1
        step = (high - low) / top
        zero = (-low / step.where(step > 0, 1.0)).round()
    else:
        top = 2 ** (bits - 1) - 1
        bottom = -top
        step = parts.abs().amax(1, True) / top
        zero = step.new_zeros(step.shape)
    codes = ((parts / step.where(step > 0, 1.0)).round() + zero).clamp(bottom, top)
    rows, columns = exact.shape
    return Quantized(
        codes.reshape(rows, -1)[:, :columns], step, zero, columns if group is None else group
    )


def _quantize(spec: ConditionSpec, weight: torch.Tensor) -> Quantized:
    return quantize(weight, spec.width, _group(spec), not spec.options["symmetric"])


def _group(spec: ConditionSpec) -> int | None:
    size = spec.options["group_size"]
    return None if size == "channel" else int(size)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """Codes without a model."""
    found = _quantize(spec, weight)
    return Codes(found.codes.short(), found.values())


def levels(spec: ConditionSpec, weight: torch.Tensor) -> Levels:
    """Levels and their neighbours; the grid hangs on a group's largest magnitude, or with a zero
    point on its lowest and highest value.
    """
    found, count = _quantize(spec, weight), 2**spec.width
    exact = weight.float()
    parts = groups(exact, _group(spec))
    if spec.options["symmetric"]:
        bottom, top = 1 - count // 2, count // 2 - 1
        high = found.spread(parts.abs().amax(1, True))
        low = -high
    else:
        bottom, top = 0, count - 1
        low, high = found.spread(parts.amin(1, True)), found.spread(parts.amax(1, True))
    codes = [(found.codes + by).clamp(bottom, top) for by in (-1, 0, 1)]
    below, values, above = (found._replace(codes=each).values() for each in codes)
    return Levels.of(exact, (below, values, above), (low, high))


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        NotInForceError: a layer was not quantized.
    """
    group, bits = _group(spec), spec.width
    constants = _STEP_BITS + (0 if spec.options["symmetric"] else bits)

    def change(_: str, weight: torch.Tensor) -> torch.Tensor:
        return _quantize(spec, weight).values()

    def read(_: str, weight: torch.Tensor) -> ModuleReading:
        found = ModuleReading.of(weight, group, weight)
        stored = -(-(weight.numel() * bits + len(found.groups) * constants) // 8)
        return found._replace(stored_bytes=stored)

    return load_changed(spec, source, plan, change, read=read)
