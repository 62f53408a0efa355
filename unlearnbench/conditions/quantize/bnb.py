"""bitsandbytes: LLM.int8() (arXiv 2208.07339), NF4 and FP4 (arXiv 2305.14314), block size 64, with
and without double quantization of the blocks' scales.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING, Any

from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    blocks,
    dtype_name,
    held_bytes,
)
from unlearnbench.conditions.proof import finish
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

log = logging.getLogger("unlearnbench")

_BACKEND = "bitsandbytes"
_BLOCK = 64
_NESTED_BLOCK = 256


def _four_bit(kind: str, double: bool) -> ConditionSpec:
    scale = 8 / _BLOCK + 32 / (_BLOCK * _NESTED_BLOCK) if double else 32 / _BLOCK
    return ConditionSpec(
        f"bnb-{kind}" + ("-dq" if double else ""),
        "quantized",
        f"{kind.upper()}, absmax per block" + (", its scales in 8 bits" if double else ""),
        _BACKEND,
        {"quant_type": kind, "block_size": _BLOCK, "double_quant": double},
        bits=4,
        bits_per_weight=4 + scale,
        kernels=("native", "dequantized"),
        libraries=("bitsandbytes",),
    )


CONDITIONS = (
    ConditionSpec(
        "bnb-int8",
        "quantized",
        "LLM.int8(): absmax per row, activations quantized too, outlier columns in 16 bits",
        _BACKEND,
        {"threshold": 6.0},
        bits=8,
        bits_per_weight=8,
        kernels=("native",),
        libraries=("bitsandbytes",),
    ),
    *(_four_bit(kind, double) for kind in ("fp4", "nf4") for double in (False, True)),
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head, as transformers does.

    Raises:
        NotInForceError: the loaded modules are not what was asked for.
    """
    model = source.build(plan.dtype, plan.device, quantization_config=_config(spec, plan.dtype))
    if plan.kernel == "native":
        require_blocks(model, plan.device)
        say_rounding(model, plan)
    return finish(spec, source, model, lambda _, module: inspect(spec, module), plan)


def _config(spec: ConditionSpec, dtype: torch.dtype) -> BitsAndBytesConfig:
    from transformers import BitsAndBytesConfig

    if spec.bits == 8:
        return BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=float(spec.options["threshold"])
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=str(spec.options["quant_type"]),
        bnb_4bit_use_double_quant=bool(spec.options["double_quant"]),
        bnb_4bit_compute_dtype=dtype,
    )


def inspect(spec: ConditionSpec, module: nn.Module) -> ModuleReading | None:
    """What one module holds.

    Raises:
        NotInForceError: it is bitsandbytes' and not of the type, dtype or block size asked for.
    """
    from bitsandbytes.nn.modules import Linear4bit

    reading = inspect_any(module)
    if reading is None or isinstance(module, Linear4bit) != (spec.bits == 4):
        return None
    if isinstance(module, Linear4bit):
        weight: Any = module.weight
        state = weight.quant_state
        found = {
            "quant_type": state.quant_type,
            "block_size": state.blocksize,
            "double_quant": bool(state.nested),
        }
        if found != dict(spec.options):
            raise NotInForceError(f"{spec.name}: a module holds {found}")
    return reading


def inspect_any(module: nn.Module) -> ModuleReading | None:
    """What one of bitsandbytes' modules holds, whatever its scheme; None for any other module.

    Raises:
        NotInForceError: its weight is not packed.
    """
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    if isinstance(module, Linear8bitLt):
        return _inspect_int8(module)
    if isinstance(module, Linear4bit):
        return _inspect_4bit(module)
    return None


def require_blocks(model: nn.Module, device: str) -> None:
    """Refuse layers that the 4-bit kernels for CPU compute wrongly: on 2-D weights whose columns
    make no whole blocks, bitsandbytes 0.50 mixes the blocks' scales up without a warning.

    Raises:
        NotInForceError: names the layer.
    """
    from bitsandbytes.nn.modules import Linear4bit

    for name, module in model.named_modules():
        odd = isinstance(module, Linear4bit) and module.in_features % _BLOCK
        if odd and device == "cpu":
            raise NotInForceError(
                f"bitsandbytes' 4-bit kernel for CPU computes wrongly where columns make no whole "
                f"blocks of {_BLOCK}, as the {module.in_features} of {name}; use --quant-kernel "
                "dequantized"
            )


def say_rounding(model: nn.Module, plan: LoadPlan) -> None:
    """Say where the 4-bit kernel does not compute in the dtype that was asked for: on a processor
    with bf16 products bitsandbytes 0.50 rounds activations and constants to bf16.
    """
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn.modules import Linear4bit

    dtype = str(plan.dtype).removeprefix("torch.")
    if plan.device != "cpu" or dtype == "bfloat16":
        return
    if not has_avx512bf16():  # type: ignore[no-untyped-call]
        return
    if any(isinstance(module, Linear4bit) for module in model.modules()):
        log.warning(
            "bitsandbytes' 4-bit kernel computes in bf16 on this processor, not in %s as asked; "
            "--quant-kernel dequantized does",
            dtype,
        )


def _inspect_int8(module: Any) -> ModuleReading:
    weight = module.weight
    scale = getattr(weight, "SCB", None)
    scale = module.state.SCB if scale is None else scale
    if dtype_name(weight) != "int8" or scale is None:
        raise NotInForceError(f"an int8 module's weight is stored as {weight.dtype}")
    values = weight.data.float() * (scale.float()[:, None] / 127)
    return ModuleReading(values, values, "int8", held_bytes(weight.data, scale))


def _inspect_4bit(module: Any) -> ModuleReading:
    import bitsandbytes as bnb
    import torch

    weight = module.weight
    state = copy.copy(getattr(weight, "quant_state", None))
    if state is None or dtype_name(weight) != "uint8":
        raise NotInForceError(f"a 4-bit module's weight is stored as {weight.dtype}, not packed")
    shape = tuple(state.shape)
    state.shape = torch.Size((1, math.prod(shape)))  # see require_blocks
    values = bnb.functional.dequantize_4bit(weight.data, state).reshape(shape)
    nested = [state.state2.absmax, state.offset] if state.nested else []
    stored = held_bytes(weight.data, state.absmax, *nested)
    return ModuleReading(values, blocks(values, state.blocksize), "uint8", stored)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """The codes of one weight, without a model. Neighbouring levels of NF4 and FP4 lie at unequal
    distances; the width is their mean, 2 absmax / 15.
    """
    import bitsandbytes as bnb
    import torch

    exact = weight.float().contiguous()
    if spec.bits == 8:
        absmax = exact.abs().amax(dim=1, keepdim=True)
        codes, _, _ = bnb.functional.int8_vectorwise_quant(exact.half())
        return Codes(codes, absmax / 127)
    packed, state = bnb.functional.quantize_4bit(
        exact, blocksize=_BLOCK, quant_type=str(spec.options["quant_type"])
    )
    flat = packed.flatten()
    codes = torch.stack([flat >> 4, flat & 15], dim=1).flatten()[: exact.numel()]
    if spec.options["quant_type"] == "fp4":
        codes[codes == 8] = 0  # minus zero
    width = (state.absmax * 2 / 15).repeat_interleave(_BLOCK)[: exact.numel()]
    return Codes(codes.reshape(exact.shape), width.reshape(exact.shape))
