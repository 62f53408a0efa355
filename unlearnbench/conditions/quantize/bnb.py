"""bitsandbytes: LLM.int8() (arXiv 2208.07339), NF4 and FP4 (arXiv 2305.14314), block size 64, with
and without double quantization of the blocks' scales.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import left_alone
from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    Levels,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dtype_name,
)
from unlearnbench.conditions.proof import finish
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

log = logging.getLogger("unlearnbench")

_BLOCK = 64
_NESTED_BLOCK = 256
_LEAST_STEP = 0.01


def _four_bit(kind: str, double: bool) -> ConditionSpec:
    scale = 8 / _BLOCK + 32 / (_BLOCK * _NESTED_BLOCK) if double else 32 / _BLOCK
    return ConditionSpec(
        f"bnb-{kind}" + ("-dq" if double else ""),
        "quantized",
        f"{kind.upper()}, absmax per block" + (", its scales in 8 bits" if double else ""),
        "bitsandbytes",
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
        "bitsandbytes",
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
    from transformers import BitsAndBytesConfig

    skipped = left_alone(source.model())
    if spec.bits == 8:
        threshold = float(spec.options["threshold"])
        config = BitsAndBytesConfig(
            load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=skipped
        )
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            llm_int8_skip_modules=skipped,
            bnb_4bit_quant_type=str(spec.options["quant_type"]),
            bnb_4bit_use_double_quant=bool(spec.options["double_quant"]),
            bnb_4bit_compute_dtype=plan.dtype,
        )
    model = source.build(plan.dtype, plan.device, quantization_config=config)
    if plan.kernel == "native":
        check_kernel(model, plan)
    return finish(spec, source, model, lambda _, module: inspect(module, spec), plan)


def check_kernel(model: nn.Module, plan: LoadPlan) -> None:
    """Refuse layers that bitsandbytes 0.50's 4-bit kernel for CPU computes wrongly: where columns
    make no whole blocks, it mixes the blocks' scales up without a warning. Say where it does not
    compute in the dtype asked for: with bf16 products it rounds activations and constants to bf16.

    Raises:
        NotInForceError: names the layer.
    """
    from bitsandbytes.functional import has_avx512bf16
    from bitsandbytes.nn.modules import Linear4bit

    if plan.device != "cpu":
        return
    layers = {name: m for name, m in model.named_modules() if isinstance(m, Linear4bit)}
    for name, layer in layers.items():
        if layer.in_features % _BLOCK:
            raise NotInForceError(
                f"bitsandbytes' 4-bit kernel for CPU computes wrongly where columns make no whole "
                f"blocks of {_BLOCK}, as the {layer.in_features} of {name}; use --quant-kernel "
                "dequantized"
            )
    dtype = str(plan.dtype).removeprefix("torch.")
    if layers and dtype != "bfloat16" and has_avx512bf16():  # type: ignore[no-untyped-call]
        log.warning(
            "bitsandbytes' 4-bit kernel computes in bf16 on this processor, not in %s as asked; "
            "--quant-kernel dequantized does",
            dtype,
        )


def inspect(module: Any, spec: ConditionSpec | None = None) -> ModuleReading | None:
    """What one of bitsandbytes' modules holds; None for any other module, and for one of other bits
    than ``spec`` has, where it is given.

    Raises:
        NotInForceError: its weight is not packed, or not of the type or block size asked for.
    """
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    bits = 8 if isinstance(module, Linear8bitLt) else 4 if isinstance(module, Linear4bit) else None
    if bits is None or (spec is not None and spec.bits != bits):
        return None
    weight = module.weight
    if bits == 8:
        scale = getattr(weight, "SCB", None)
        scale = module.state.SCB if scale is None else scale
        if dtype_name(weight) != "int8" or scale is None:
            raise NotInForceError(f"an int8 module's weight is stored as {weight.dtype}")
        values = weight.data.float() * (scale.float()[:, None] / 127)
        return ModuleReading.of(values, None, weight.data, scale)
    state = copy.copy(getattr(weight, "quant_state", None))
    if state is None or dtype_name(weight) != "uint8":
        raise NotInForceError(f"a 4-bit module's weight is stored as {weight.dtype}, not packed")
    size, nested = state.blocksize, bool(state.nested)
    found = {"quant_type": state.quant_type, "block_size": size, "double_quant": nested}
    if spec is not None and found != dict(spec.options):
        raise NotInForceError(f"{spec.name}: a module holds {found}")
    shape = tuple(state.shape)
    state.shape = torch.Size((1, math.prod(shape)))  # one row of blocks; see check_kernel
    values = dequantize_4bit(weight.data, state)
    constants = [state.absmax, *([state.state2.absmax, state.offset] if nested else [])]
    # The blocks run on from row to row.
    reading = ModuleReading.of(values.reshape(1, -1), size, weight.data, *constants)
    return reading._replace(weight=values.reshape(shape))


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """The codes of one weight, without a model. Those of bnb-int8 are taken from float16, as
    bitsandbytes takes them; its columns of 16 bits depend on activations, and are left out.
    """
    import bitsandbytes as bnb
    import torch

    exact = weight.float().contiguous()
    if spec.bits == 8:
        codes, absmax, _ = bnb.functional.int8_vectorwise_quant(exact.half())
        return Codes(codes, codes.float() * (absmax.float()[:, None] / 127))
    packed, state = bnb.functional.quantize_4bit(
        exact.reshape(1, -1),  # one row of blocks; see check_kernel
        blocksize=_BLOCK,
        compress_statistics=bool(spec.options["double_quant"]),
        quant_type=str(spec.options["quant_type"]),
    )
    values = bnb.functional.dequantize_4bit(packed, state)
    flat = packed.flatten()
    codes = torch.stack([flat >> 4, flat & 15], dim=1).flatten()[: exact.numel()]
    if spec.options["quant_type"] == "fp4":
        codes[codes == 8] = 0  # minus zero
    return Codes(codes.reshape(exact.shape), values.reshape(exact.shape))


def levels(spec: ConditionSpec, weight: torch.Tensor) -> Levels:
    """Levels and their neighbours; the grid hangs on a row's or block's largest magnitude."""
    import torch
    from bitsandbytes.functional import get_4bit_type

    exact, codes = weight.float().contiguous(), encode(spec, weight).codes
    if spec.bits == 8:
        high = exact.abs().amax(dim=1, keepdim=True).expand(exact.shape)
        nearby = [(codes.short() + by).clamp(-127, 127) * (high / 127) for by in (-1, 0, 1)]
        return Levels.of(exact, (nearby[0], nearby[1], nearby[2]), (-high, high))
    short = -exact.numel() % _BLOCK
    blocks = torch.nn.functional.pad(exact.flatten(), (0, short)).reshape(-1, _BLOCK)
    high = blocks.abs().amax(1).repeat_interleave(_BLOCK)[: exact.numel()].reshape(exact.shape)
    kind = str(spec.options["quant_type"])
    table = get_4bit_type(kind, device="cpu")  # type: ignore[no-untyped-call]
    own, inf = table[codes.long()], torch.tensor([float("inf")])
    # FP4's levels of 0.0052 on either side of 0 are no step away from it.
    wide = torch.cat([-inf, table[(table == 0) | (table.abs() > _LEAST_STEP)].unique(), inf])
    above = wide[torch.searchsorted(wide, own + _LEAST_STEP)]
    below = wide[torch.searchsorted(wide, own - _LEAST_STEP) - 1]
    nearby = [level * high for level in (below, own, above)]
    return Levels.of(exact, (nearby[0], nearby[1], nearby[2]), (-high, high))
