"""torchao's int8 weight-only quantization, through transformers: symmetric, per output channel.

Its int4 is not offered: it fails to load on CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import left_alone
from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dense_linear,
)
from unlearnbench.conditions.proof import finish, require_linear
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

CONDITIONS = (
    ConditionSpec(
        "torchao-int8",
        "quantized",
        "uniform, absmax per output channel",
        "torchao",
        {"config": "Int8WeightOnlyConfig"},
        bits=8,
        bits_per_weight=8,
        kernels=("native", "dequantized"),
        extra="torchao",
        libraries=("torchao",),
    ),
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        PrecisionError: torchao passes over a layer.
        NotInForceError: the loaded modules are not what was asked for.
    """
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    require_linear(spec, source)
    skipped = left_alone(source.model())
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=skipped)
    model = source.build(plan.dtype, plan.device, quantization_config=config)
    return finish(spec, source, model, lambda _, module: _inspect(module), plan)


def _inspect(module: nn.Module) -> ModuleReading | None:
    from torch import nn
    from torchao.quantization import Int8Tensor

    if not isinstance(module, nn.Linear) or not isinstance(module.weight, Int8Tensor):
        return None
    weight: Any = module.weight
    if weight.act_quant_kwargs is not None:
        raise NotInForceError("torchao-int8: a module quantizes activations too")
    return ModuleReading.of(weight.dequantize(), None, weight.qdata, weight.scale)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """Codes without a model."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    linear = dense_linear(weight.float())
    quantize_(linear, Int8WeightOnlyConfig())
    found: Any = linear.weight
    return Codes(found.qdata, found.dequantize())
