"""GPTQ (arXiv 2210.17323): rounds column after column and moves each one's error into the columns
that are still to come, as weighted by the layer's inputs on calibration texts. GPTQModel's
implementation, driven by optimum through transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
)
from unlearnbench.conditions.proof import finish, require_coverable
from unlearnbench.conditions.quantize import _gptqmodel as library

if TYPE_CHECKING:
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_DAMPING = 0.1

CONDITIONS = tuple(
    ConditionSpec(
        f"gptq-int{bits}-g{group}",
        "quantized",
        f"GPTQ, symmetric per group of {group} columns, calibrated",
        "gptqmodel",
        {
            "group_size": group,
            "symmetric": True,
            "desc_act": False,
            "act_group_aware": False,
            "true_sequential": True,
            "damp_percent": _DAMPING,
        },
        bits=bits,
        bits_per_weight=bits + (16 + bits) / group,
        kernels=("native", "dequantized"),
        extra="gptq",
        libraries=("gptqmodel", "optimum"),
        calibrated=True,
    )
    for bits in (4, 8)
    for group in (64, 128)
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head, one transformer block after another.

    Raises:
        PrecisionError: the library cannot quantize this model.
        NotInForceError: a layer was not quantized.
    """
    assert plan.calibration is not None  # noqa: S101 - load.prepare sees to it
    require_coverable(spec, source)  # and the checkpoint's own faults are told as such
    with library.gptqmodel():
        from transformers import GPTQConfig

        config = GPTQConfig(
            bits=int(spec.bits or 0),
            group_size=int(spec.options["group_size"]),
            # Token ids are allowed too, whatever its annotation says.
            dataset=library.token_batches(source, plan.calibration),  # type: ignore[arg-type]
            sym=True,
            desc_act=False,
            act_group_aware=False,
            true_sequential=True,
            damp_percent=_DAMPING,
            backend="gptq_torch",
        )
        model = source.build(plan.dtype, plan.device, quantization_config=config)
        if plan.device == "cpu":
            library.without_compilation(model)
    size = int(spec.options["group_size"])

    def inspect(_: str, module: nn.Module) -> ModuleReading | None:
        return library.in_module(module, spec.bits, size)

    return finish(spec, source, model, inspect, plan)
