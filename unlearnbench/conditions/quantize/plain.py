"""Unquantized precisions: the checkpoint as it is, and the three floating-point ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.conditions.base import How, Loaded, PrecisionSpec, Seen, dtype_name, held_bytes
from unlearnbench.conditions.proof import prove
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

PRECISIONS = (
    PrecisionSpec("none", None, "as stored in the checkpoint", "torch"),
    PrecisionSpec("fp32", 32, "IEEE binary32", "torch", {"storage": "float32"}, 32),
    PrecisionSpec("bf16", 16, "bfloat16", "torch", {"storage": "bfloat16"}, 16),
    PrecisionSpec("fp16", 16, "IEEE binary16", "torch", {"storage": "float16"}, 16),
)


def unavailable(spec: PrecisionSpec, device: str) -> str | None:
    """These run wherever torch does."""
    return None


def load(spec: PrecisionSpec, source: CheckpointSource, how: How) -> Loaded:
    """Round the weights to the storage dtype and hold them in the compute dtype. A checkpoint that
    is quantized already stays as it is.

    Raises:
        NotInForceError: a weight overflows the storage dtype, or some were not rounded to it.
    """
    import torch
    from torch.nn import Linear

    from unlearnbench.conditions.quantize import packed

    if source.stored is not None:
        return packed.load(source, source.stored, how)
    name = spec.options.get("storage")
    storage = getattr(torch, str(name)) if name else None
    before = source.state_dict()
    state = before if storage is None else {k: _round(k, t, storage) for k, t in before.items()}
    model = source.build(how.dtype, how.device, state=state)

    def inspect(name: str, module: nn.Module) -> Seen | None:
        if storage is None or not isinstance(module, Linear):
            return None
        narrow = storage if storage.itemsize <= how.dtype.itemsize else how.dtype
        if not torch.equal(module.weight.to(narrow).to(how.dtype), module.weight):
            raise NotInForceError(f"{spec.name}: a weight is not rounded to {storage}")
        weight = module.weight
        return Seen(weight, weight, dtype_name(weight), held_bytes(weight))

    return Loaded(model, prove(spec, source, model, inspect))


def _round(name: str, tensor: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(storage)
    if not bool(rounded.isfinite().all()):
        raise NotInForceError(f"tensor {name} overflows {storage}; use bf16 or fp32")
    return rounded
