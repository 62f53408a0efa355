"""The checkpoint as it is stored, quantized already or not, and in the three floating-point storage
dtypes.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.checkpoints.load import (
    device_map,
    from_pretrained,
    matrices,
    out_first,
    refusing,
    require_most,
    text_modules,
)
from unlearnbench.checkpoints.packed import StoredScheme, shared
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    held_bytes,
)
from unlearnbench.conditions.proof import Inspection, describe, distinct_values, prove
from unlearnbench.conditions.quantize import bnb, gptqmodel
from unlearnbench.errors import CheckpointError, NotInForceError
from unlearnbench.results import Proof
from unlearnbench.util.process import muted

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

log = logging.getLogger("unlearnbench")

_FP8 = "unlearnbench_fp8"


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
        CheckpointError: a quantized one cannot be loaded.
        NotInForceError: a weight overflows the storage dtype, or some were not rounded to it; a
            quantized one is not packed as its config states.
    """
    import torch
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    if source.stored is not None:
        return _load_packed(source, source.stored, plan)
    name = spec.options.get("storage")
    storage = getattr(torch, str(name)) if name else None
    before = source.state_dict()
    state = before if storage is None else {k: _round(k, t, storage) for k, t in before.items()}
    model = source.build(plan.dtype, plan.device, state=state)

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        if storage is None or not isinstance(module, (Linear, Conv1D)):
            return None
        narrow = storage if storage.itemsize <= plan.dtype.itemsize else plan.dtype
        if not torch.equal(module.weight.to(narrow).to(plan.dtype), module.weight):
            raise NotInForceError(f"{spec.name}: a weight is not rounded to {storage}")
        weight = out_first(module, module.weight)
        return ModuleReading.of(weight, None, weight)

    return ModelWithProof(model, prove(spec, source, model, inspect))


def _round(name: str, tensor: torch.Tensor, storage: torch.dtype) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    rounded = tensor.to(storage)
    if not bool(rounded.isfinite().all()):
        raise NotInForceError(f"tensor {name} overflows {storage}; use bf16 or fp32")
    return rounded


def _load_packed(source: CheckpointSource, scheme: StoredScheme, plan: LoadPlan) -> ModelWithProof:
    """A checkpoint that is quantized already, as its config states; the kernel is ours to say."""
    if scheme.method == "mxfp4":
        _require_blocks(source)
    config: Any = copy.deepcopy(source.config)
    stated = config.quantization_config
    facts = dict(stated if isinstance(stated, dict) else stated.to_dict())
    if scheme.method == "gptq":
        facts["backend"] = "gptq_torch"
    elif scheme.method == "awq":
        facts["backend"] = "auto" if plan.device == "cpu" else "awq_torch"
    elif facts.get("load_in_4bit"):
        facts["bnb_4bit_compute_dtype"] = str(plan.dtype).removeprefix("torch.")
    elif scheme.method in ("fp8", "mxfp4"):  # whose kernels are for GPUs of the last years alone
        facts["dequantize"] = True
    config.quantization_config = facts
    extra = {"use_safetensors": True, "dtype": plan.dtype, "device_map": device_map(plan.device)}
    is_gptqmodel = scheme.method in ("gptq", "awq")
    is_compressed = scheme.method == "compressed-tensors"
    library = gptqmodel.gptqmodel if is_gptqmodel else _packed_zero_points
    with library() if is_gptqmodel or is_compressed else nullcontext():
        model: Any = from_pretrained(source.full, config, extra)
        if is_gptqmodel and plan.device == "cpu":
            gptqmodel.without_compilation(model)
    if is_compressed:
        # It would do so at the first forward, after the proof; a scheme that quantizes activations
        # goes on doing that.
        with refusing(f"{source.files.path}: its weights cannot be unpacked"), muted():
            model.hf_quantizer.compressor.decompress_model(model)
        for module in list[Any](model.modules()):
            if _is_unpacked(module):  # some schemes into bf16, whatever was asked for
                module.weight.data = module.weight.data.to(plan.dtype)
    if scheme.method == "bitsandbytes":
        bnb.check_kernel(model, plan)
    for name, head in source.full.tensors.items() if scheme.method == "fp8" else ():
        if head.dtype == "F8_E4M3" and name.endswith(".weight"):
            module = model.get_submodule(name.removesuffix(".weight"))
            setattr(module, _FP8, True)
            module.weight.data = module.weight.data.to(plan.dtype)
    return ModelWithProof(model, _prove(scheme, model, source))


def _require_blocks(source: CheckpointSource) -> None:
    """CheckpointError where MXFP4's blocks, (experts, out, groups, 16), and scales, of those but
    the last, do not go together: transformers says so in a table, or takes them.
    """
    heads, said = source.full.tensors, f"{source.files.path}: MXFP4 wants"
    packed = {name.rpartition("_")[0] for name in heads if name.endswith(("_blocks", "_scales"))}
    for name in sorted(packed):
        both = [heads.get(f"{name}_{part}") for part in ("blocks", "scales")]
        shapes = [None if head is None else tuple(head.shape) for head in both]
        blocks, scales = shapes
        if blocks is None or len(blocks) != 4 or blocks[3] != 16 or scales != blocks[:3]:
            found = ["missing" if shape is None else shape for shape in shapes]
            raise CheckpointError(
                f"{said} blocks (experts, rows, groups, 16) and scales (experts, rows, groups), "
                f"and of {name} they are {found[0]} and {found[1]}"
            )
        if kinds := {head.dtype for head in both if head is not None} - {"U8"}:
            raise CheckpointError(f"{said} bytes (U8), and {name} is stored as {min(kinds)}")
        if name in heads:
            raise CheckpointError(f"{source.files.path} holds {name} both packed and plain")


@contextmanager
def _packed_zero_points() -> Iterator[None]:
    """Meanwhile compressed-tensors makes room for zero points as they are stored. Its version 0.20
    packs weights, but not zero points, in a model that has no memory yet, and then finds those of a
    checkpoint of another shape.
    """
    import torch
    from compressed_tensors.compressors.pack_quantized.base import (
        PACK_ZP_STRATS,
        PackedQuantizationCompressor,
    )

    before: Any = PackedQuantizationCompressor.__dict__["compress"]

    def compress(kind: Any, state: Any, scheme: Any) -> Any:
        found, args = before.__func__(kind, state, scheme), scheme.weights
        zero = found.get("weight_zero_point")
        if zero is not None and zero.is_meta and args.strategy in PACK_ZP_STRATS:
            rows = math.ceil(zero.shape[0] * args.num_bits / 32)
            found["weight_zero_point"] = torch.empty(
                (rows, *zero.shape[1:]), dtype=torch.int32, device="meta"
            )
        return found

    setattr(PackedQuantizationCompressor, "compress", classmethod(compress))  # noqa: B010
    try:
        yield
    finally:
        setattr(PackedQuantizationCompressor, "compress", before)  # noqa: B010


def _prove(scheme: StoredScheme, model: PreTrainedModel, source: CheckpointSource) -> Proof:
    inspection, codes, path = Inspection(), 0, source.files.path
    for name, _, reading in packed_modules(scheme, model, source):
        inspection.add(name, reading)
        if not bool(reading.weight.isfinite().all()):
            raise NotInForceError(f"a weight of module {name} is NaN or infinite")
        codes = max(codes, distinct_values(reading.groups))
    if not inspection.weights:
        raise NotInForceError(
            f"the checkpoint states {scheme.text}, and no module of the loaded model is packed so"
        )
    inside = inspection.weights  # with their scales and zero points
    others = matrices(model).items()
    sizes = {n: size for n, size in others if n.rpartition(".")[0] not in inside} | inside
    require_most(f"{path} ({scheme.text})", sizes, inspection.weights)
    if len(sizes) > len(inspection.weights):
        share = sum(inspection.weights.values()) / sum(sizes.values())
        message = "%s: %.1f%% of the weights of its linear layers are packed, the others are not"
        log.warning(message, path, math.floor(1000 * share) / 10)
    if codes > 2**scheme.bits:
        raise NotInForceError(
            f"the checkpoint states {scheme.bits:g} bits, and a group holds {codes} values"
        )
    return Proof.model_validate({**describe(model, inspection), "codes": codes})


def packed_modules(
    scheme: StoredScheme, model: PreTrainedModel, source: CheckpointSource
) -> Iterator[tuple[str, Any, ModuleReading]]:
    """Name, module and what is in it, of every packed one of a checkpoint that is quantized
    already. Of experts that are stacked in one tensor, (experts, in, out), the tensor's own name.
    """
    stacked = set[str]()
    if scheme.method == "mxfp4":
        stacked = {n.removesuffix("_blocks") for n in source.full.tensors if n.endswith("_blocks")}
    for name, module in text_modules(model).items():
        reading = _read_packed(scheme, module)
        if reading is not None:
            yield name, module, reading
        for key, tensor in module.named_parameters(recurse=False) if stacked else ():
            if f"{name}.{key}" in stacked and tensor.dim() == 3:
                stacked.remove(f"{name}.{key}")
                weight = tensor.detach()
                reading = ModuleReading.of(weight.mT.flatten(0, 1), scheme.group, weight)
                size = weight.numel() * 17 // 32  # 4 bits, and 8 for each 32
                yield (
                    f"{name}.{key}",
                    module,
                    reading._replace(weight=weight, stored_as="mxfp4", stored_bytes=size),
                )
    if stacked:
        raise NotInForceError(
            f"{source.files.path} packs {min(stacked)}, for which the model has no place"
        )


def _read_packed(scheme: StoredScheme, module: Any) -> ModuleReading | None:
    """What is in one module; None: it is not packed."""
    if scheme.method == "bitsandbytes":
        return bnb.inspect(module)
    if scheme.method in ("gptq", "awq"):
        return gptqmodel.in_module(module)
    if scheme.method == "fp8":
        return _read_fp8(scheme, module)
    if scheme.method == "mxfp4":
        return None
    if not _is_unpacked(module):
        return None
    own = module.quantization_scheme.weights.model_dump(mode="json")
    group, _ = shared(own)
    reading = ModuleReading.of(module.weight.detach(), group, module.weight)
    zero = getattr(module, "weight_zero_point", None)
    codes = module.weight.numel() + (zero.numel() if zero is not None else 0)
    scales = held_bytes(getattr(module, "weight_scale", None))
    return reading._replace(stored_bytes=int(codes * own["num_bits"] / 8) + scales)


def _read_fp8(scheme: StoredScheme, module: Any) -> ModuleReading | None:
    """Of a module that transformers has unpacked: it says no more of it than its values."""
    if not getattr(module, _FP8, False):
        return None
    weight = module.weight.detach()
    reading = ModuleReading.of(weight, scheme.group, weight)
    return reading._replace(stored_as="float8_e4m3fn", stored_bytes=weight.numel())


def _is_unpacked(module: Any) -> bool:
    """Whether compressed-tensors has unpacked this module's weight."""
    from torch.nn import Linear

    stated = getattr(module, "quantization_scheme", None)
    return isinstance(module, Linear) and getattr(stated, "weights", None) is not None
