"""Weights in small floating-point numbers (FP8, MXFP8, MXFP4, NVFP4), and 8-bit weights with 8-bit
activations, by compressed-tensors, llm-compressor's and vLLM's library: its scales, its rounding.

Weights are quantized and dequantized into the compute dtype: the numbers are those of a kernel with
exact products, on any device. Where activations are quantized too, each token's inputs of a layer
are, by their own largest magnitude, and so whatever they are run together with.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import linear_layers
from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    groups,
)
from unlearnbench.conditions.proof import load_changed
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_BLOCK = 128
_TOKENS = "; each token's inputs in {}, by their absmax"


def _spec(
    name: str, preset: str, bits: int, constants: float, scheme: str, **options: str | int
) -> ConditionSpec:
    tokens = "activations" in options
    return ConditionSpec(
        name,
        "quantized",
        scheme,
        "compressed-tensors",
        {"preset": preset, **options},
        bits=bits,
        bits_per_weight=bits + constants,
        kernels=("native",) if tokens else ("dequantized",),
        extra="compressed-tensors",
        libraries=("compressed_tensors",),
    )


CONDITIONS = (
    _spec("fp8-e4m3", "FP8_DYNAMIC", 8, 0, "FP8 E4M3, absmax per output channel"),
    _spec("fp8-e4m3-tensor", "FP8", 8, 0, "FP8 E4M3, absmax per matrix"),
    _spec(
        *("fp8-e4m3-b128", "FP8_BLOCK", 8, 16 / _BLOCK**2),
        f"FP8 E4M3, absmax per block of {_BLOCK} rows and {_BLOCK} columns",
        group_size=_BLOCK,
    ),
    _spec(
        *("fp8-e4m3-dynamic", "FP8_DYNAMIC", 8, 0),
        "FP8 E4M3, absmax per output channel" + _TOKENS.format("FP8 E4M3"),
        activations="FP8 per token",
    ),
    _spec(
        *("int8-w8a8", "INT8", 8, 0),
        "uniform, absmax per output channel" + _TOKENS.format("8 bits"),
        activations="int8 per token",
    ),
    _spec(
        *("mxfp8", "MXFP8A16", 8, 8 / 32),
        "FP8 E4M3, a power of two per group of 32 columns",
        group_size=32,
    ),
    _spec(
        *("mxfp4", "MXFP4A16", 4, 8 / 32),
        "FP4 E2M1, a power of two per group of 32 columns",
        group_size=32,
    ),
    _spec(
        *("nvfp4", "NVFP4A16", 4, 8 / 16),
        "FP4 E2M1, an FP8 scale per group of 16 columns and one per matrix",
        group_size=16,
    ),
)


def _group(spec: ConditionSpec) -> int | None:
    return int(spec.options["group_size"]) if "group_size" in spec.options else None


@functools.cache
def _preset(name: str) -> Mapping[str, Any]:
    """Arguments for ``weights`` and ``input_activations`` by compressed-tensors' own name."""
    from compressed_tensors.quantization.quant_scheme import PRESET_SCHEMES

    found: Mapping[str, Any] = PRESET_SCHEMES[name]
    return found


def _rounded(spec: ConditionSpec, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes as numbers of the small type, and what they stand for, both (out, in) in float32.

    Raises:
        NotInForceError: columns make no groups.
    """
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    exact, size = weight.detach().float(), _group(spec)
    name, args = spec.name, _preset(str(spec.options["preset"]))["weights"]
    rows, columns = exact.shape
    if size is not None and size != _BLOCK and columns % size:
        raise NotInForceError(f"{name}: {columns} columns make no groups of {size}")
    whole = None
    if size == _BLOCK:
        low, high = _of_blocks(exact)
    elif str(args.strategy) == "tensor":
        low, high = exact.min(), exact.max()
    else:
        parts = exact.reshape(rows, -1, size or columns)
        low, high = parts.amin(-1), parts.amax(-1)
        if name == "nvfp4":
            whole = generate_gparam(exact.min(), exact.max())
    scale, _ = calculate_qparams(low, high, args, global_scale=whole)
    scale = scale.float()
    codes = quantize(exact, scale, None, args, global_scale=whole).float()
    return codes, dequantize(codes, scale, None, args, global_scale=whole).float()


def _of_blocks(exact: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The least and the largest value of every block; those at the edges may be smaller."""
    import torch

    bands = exact.split(_BLOCK, 0)
    ends = [[(b.amin(), b.amax()) for b in band.split(_BLOCK, 1)] for band in bands]
    low, high = (torch.tensor([[float(e[i]) for e in band] for band in ends]) for i in (0, 1))
    return low.to(exact), high.to(exact)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head, and what it is given where that is asked.

    Raises:
        NotInForceError: a layer's columns make no groups.
    """

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        try:
            return _rounded(spec, weight)[1]
        except NotInForceError as error:
            raise NotInForceError(f"{error}; see {name}") from None

    def read(_: str, weight: torch.Tensor) -> ModuleReading:
        stored = int(weight.numel() * (spec.bits_per_weight or spec.width) / 8)
        return ModuleReading(weight, groups(weight, _group(spec)), _dtype(spec), stored)

    model, proof, _ = load_changed(spec, source, plan, change, read=read)
    if "activations" in spec.options:
        from compressed_tensors.quantization import QuantizationScheme

        scheme = QuantizationScheme(targets=["Linear"], **_preset(str(spec.options["preset"])))
        for layer in linear_layers(model).values():
            whole: Any = layer
            whole.quantization_scheme = scheme  # as the library marks its own; see packable.py
            layer.register_forward_pre_hook(functools.partial(_take, spec))
    return ModelWithProof(model, proof)


def _dtype(spec: ConditionSpec) -> str:
    if spec.options["preset"] == "INT8":
        return "int8"
    return "float8_e4m3fn" if spec.bits == 8 else "float4_e2m1"


def _take(spec: ConditionSpec, layer: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """A layer's inputs as it would get them, every token's (the last dimension) by itself."""
    if not getattr(layer, "quantization_enabled", True):  # switched off as in the library's own
        return given
    return (activations(spec, given[0]), *given[1:])


def activations(spec: ConditionSpec, inputs: torch.Tensor) -> torch.Tensor:
    """Inputs, (..., in), quantized and dequantized, in their own dtype."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    args = _preset(str(spec.options["preset"]))["input_activations"]
    exact = inputs.float()
    scale, _ = calculate_qparams(exact.amin(-1, True), exact.amax(-1, True), args)
    rounded: torch.Tensor = fake_quantize(exact, scale, None, args)
    return rounded.to(inputs.dtype)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """Codes without a model; of floating-point ones the bits of FP8, which holds FP4's values."""
    import torch

    codes, values = _rounded(spec, weight)
    if spec.options["preset"] == "INT8":
        return Codes(codes.to(torch.int8), values)
    positive_zero = codes + 0.0  # which minus zero becomes
    return Codes(positive_zero.to(torch.float8_e4m3fn).view(torch.uint8), values)
