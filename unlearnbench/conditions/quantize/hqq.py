"""HQQ, half-quadratic quantization: 8 to 2 bits with a zero point for each group of 64 columns, by
a solver that looks at the weights only (Badri & Shaji 2023, mobiusml.github.io/hqq_blog).

The hqq library itself is used: transformers' HqqConfig raises NotImplementedError in version 5.23.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import linear_layers, out_first
from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    Levels,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dense_linear,
)
from unlearnbench.conditions.proof import finish
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_GROUP = 64

CONDITIONS = tuple(
    ConditionSpec(
        f"hqq-int{bits}-g64",
        "quantized",
        "HQQ: uniform with zero point per group of 64 columns, solved for on the weights",
        "hqq",
        {"group_size": _GROUP, "axis": 1},
        bits=bits,
        bits_per_weight=bits + 2 * 16 / _GROUP,
        kernels=("native", "dequantized"),
        extra="hqq",
        libraries=("hqq",),
    )
    for bits in (8, 4, 3, 2)
)

SOLVED = True


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        NotInForceError: a layer's columns are no multiple of 64, or a layer was not quantized.
    """
    from hqq.core.quantize import HQQLinear
    from torch import nn

    before = source.state_dict()
    model = source.build(plan.dtype, plan.device)

    for name, layer in linear_layers(model).items():
        weight = out_first(layer, before[f"{name}.weight"])
        if weight.numel() % _GROUP:
            raise NotInForceError(
                f"{spec.name}: the {weight.numel()} weights of {name} make no groups of {_GROUP}"
            )
        dense = dense_linear(weight.float(), layer.bias)
        made = HQQLinear(dense, _config(spec), compute_dtype=plan.dtype, device=plan.device)
        bias = made.__dict__.pop("bias", None)  # a bare tensor, which nobody would count
        made.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        model.set_submodule(name, made)
    return finish(spec, source, model, lambda _, module: _inspect(spec, module), plan)


def _config(spec: ConditionSpec) -> Any:
    from hqq.core.quantize import BaseQuantizeConfig

    return BaseQuantizeConfig(nbits=spec.width, group_size=_GROUP, axis=1)


def _inspect(spec: ConditionSpec, module: nn.Module) -> ModuleReading | None:
    from hqq.core.quantize import HQQLinear

    if not isinstance(module, HQQLinear):
        return None
    meta = module.meta
    if (meta["nbits"], meta["group_size"], meta["axis"]) != (spec.bits, _GROUP, 1):
        raise NotInForceError(
            f"{spec.name}: a module holds {meta['nbits']} bits in groups of "
            f"{meta['group_size']} along axis {meta['axis']}"
        )
    constants = meta["scale"], meta["zero"]
    return ModuleReading.of(module.dequantize(), _GROUP, module.W_q.data, *constants)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """Codes without a model."""
    codes, scale, zero = _solve(spec, weight)
    return Codes(codes, (codes.float() - zero) * scale)


def levels(spec: ConditionSpec, weight: torch.Tensor) -> Levels:
    """Levels and their neighbours. The grid is solved for on all weights of a group: it follows a
    weight that is moved, and nothing is fixed.
    """
    import torch

    codes, scale, zero = _solve(spec, weight)
    top = 2**spec.width - 1
    nearby = [((codes.float() + by).clamp(0, top) - zero) * scale for by in (-1, 0, 1)]
    high = torch.full_like(weight, float("inf"), dtype=torch.float32)
    return Levels.of(weight.float(), (nearby[0], nearby[1], nearby[2]), (-high, high))


def _solve(
    spec: ConditionSpec, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, and scale and zero point of every weight, (out, in)."""
    import torch
    from hqq.core.quantize import Quantizer

    options = _config(spec)["weight_quant_params"]
    packed, meta = Quantizer.quantize(
        weight.float(), device=str(weight.device), compute_dtype=torch.float32, **options
    )
    codes = Quantizer.unpack[meta["packing"]](packed, dtype=torch.uint8)
    codes = codes[: weight.numel() // _GROUP].reshape(
        weight.shape
    )  # 3 bits fill up to tens of rows
    scale, zero = (
        meta[name].reshape(-1, 1).expand(-1, _GROUP).reshape(weight.shape).float()
        for name in ("scale", "zero")
    )
    return codes, scale, zero
