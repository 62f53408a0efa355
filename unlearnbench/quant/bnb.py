"""bitsandbytes: LLM.int8() (arXiv 2208.07339), NF4 and FP4 (arXiv 2305.14314), block size 64."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import NotInForceError
from unlearnbench.quant.base import Loaded, PrecisionSpec, Seen, prove

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import BitsAndBytesConfig

    from unlearnbench.models.source import Source

__all__ = ["PRECISIONS", "load", "unavailable"]

_BACKEND = "bitsandbytes"
_FOUR_BIT = {"block_size": 64, "double_quant": False}

PRECISIONS = (
    PrecisionSpec(
        "bnb-int8",
        8,
        "LLM.int8(): absmax per row, activations quantized too, outlier columns in 16 bits",
        _BACKEND,
        {"threshold": 6.0},
    ),
    PrecisionSpec(
        "bnb-fp4", 4, "FP4, absmax per block", _BACKEND, {"quant_type": "fp4", **_FOUR_BIT}
    ),
    PrecisionSpec(
        "bnb-nf4", 4, "NF4, absmax per block", _BACKEND, {"quant_type": "nf4", **_FOUR_BIT}
    ),
)


def unavailable(spec: PrecisionSpec, device: str) -> str | None:
    """Bitsandbytes must be installed; it has kernels for CPU and CUDA."""
    if importlib.util.find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed: pip install bitsandbytes"
    return None


def load(spec: PrecisionSpec, source: Source, dtype: torch.dtype, device: str) -> Loaded:
    """Quantize every linear layer but the output head, as transformers does.

    Raises:
        NotInForceError: the loaded modules are not what was asked for.
    """
    before = source.state_dict()
    model = source.build(dtype, device, quantization_config=_config(spec, dtype))
    return Loaded(model, prove(spec, model, before, lambda module: _inspect(spec, module)))


def _config(spec: PrecisionSpec, dtype: torch.dtype) -> BitsAndBytesConfig:
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


def _inspect(spec: PrecisionSpec, module: nn.Module) -> Seen | None:
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt

    if isinstance(module, Linear8bitLt) and spec.bits == 8:
        return _inspect_int8(module)
    if isinstance(module, Linear4bit) and spec.bits == 4:
        return _inspect_4bit(spec, module)
    return None


def _inspect_int8(module: Any) -> Seen:
    weight = module.weight
    scale = weight.SCB if weight.SCB is not None else module.state.SCB
    if str(weight.dtype) != "torch.int8" or scale is None:
        raise NotInForceError(f"bnb-int8: a weight is stored as {weight.dtype}, not as int8")
    return Seen(weight.data.float() * (scale.float()[:, None] / 127), len(weight.data.unique()))


def _inspect_4bit(spec: PrecisionSpec, module: Any) -> Seen:
    import bitsandbytes as bnb

    weight, state = module.weight, module.weight.quant_state
    if state is None or str(weight.dtype) != "torch.uint8":
        raise NotInForceError(f"{spec.name}: a weight is stored as {weight.dtype}, not packed")
    if (state.quant_type, state.blocksize) != (
        spec.options["quant_type"],
        spec.options["block_size"],
    ):
        raise NotInForceError(
            f"{spec.name}: a module holds {state.quant_type} in blocks of {state.blocksize}"
        )
    packed = weight.data.flatten()
    codes = len({*(packed >> 4).unique().tolist(), *(packed & 15).unique().tolist()})
    return Seen(bnb.functional.dequantize_4bit(weight.data, state), codes)
