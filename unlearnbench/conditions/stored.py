"""The checkpoint as it is stored, and in the three floating-point storage dtypes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dtype_name,
    held_bytes,
)
from unlearnbench.conditions.proof import prove
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource


def _spec(name: str, bits: int, scheme: str) -> ConditionSpec:
    options = {"storage": DTYPES[name]}
    return ConditionSpec(name, "stored", scheme, "torch", options, bits, bits)


CONDITIONS = (
    ConditionSpec("none", "stored", "as stored in the checkpoint", "torch"),
    _spec("fp32", 32, "IEEE binary32"),
    _spec("bf16", 16, "bfloat16"),
    _spec("fp16", 16, "IEEE binary16"),
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Round the weights to the storage dtype and hold them in the compute dtype. A checkpoint that
    is quantized already stays as it is.

    Raises:
        NotInForceError: a weight overflows the storage dtype, or some were not rounded to it.
    """
    import torch
    from torch.nn import Linear

    from unlearnbench.conditions.quantize import packed

    if source.stored is not None:
        return packed.load(source, source.stored, plan)
    name = spec.options.get("storage")
    storage = getattr(torch, str(name)) if name else None
    before = source.state_dict()
    state = before if storage is None else {k: _round(k, t, storage) for k, t in before.items()}
    model = source.build(plan.dtype, plan.device, state=state)

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        if storage is None or not isinstance(module, Linear):
            return None
        narrow = storage if storage.itemsize <= plan.dtype.itemsize else plan.dtype
        if not torch.equal(module.weight.to(narrow).to(plan.dtype), module.weight):
            raise NotInForceError(f"{spec.name}: a weight is not rounded to {storage}")
        weight = module.weight
        return ModuleReading(weight, weight, dtype_name(weight), held_bytes(weight))

    return ModelWithProof(model, prove(spec, source, model, inspect))


def _round(name: str, tensor: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(storage)
    if not bool(rounded.isfinite().all()):
        raise NotInForceError(f"tensor {name} overflows {storage}; use bf16 or fp32")
    return rounded
