"""llama.cpp's block formats Q8_0, Q5_1, Q4_1 and Q4_0, 32 weights a block, quantized and
dequantized by the gguf package (github.com/ggml-org/llama.cpp, gguf-py).

llama.cpp's own kernels quantize activations to 8 bits too; here only the weights are. Its mixed
K-quants (Q4_K_M and the like), which gguf-py reads and cannot make, are in ``ggml.py``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    Levels,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
)
from unlearnbench.conditions.proof import load_changed
from unlearnbench.conditions.quantize import blocks
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_BLOCK = 32
# Bytes of a block before its codes: fp16 scale, with fp16 minimum for the _1 formats.
_HEADER = {"Q8_0": 2, "Q5_1": 4, "Q4_1": 4, "Q4_0": 2}
_ENDS = {"Q8_0": (-127, 127), "Q5_1": (0, 31), "Q4_1": (0, 15), "Q4_0": (-8, 7)}


def _spec(kind: str, bits: int, scheme: str) -> ConditionSpec:
    return ConditionSpec(
        f"gguf-{kind.lower()}",
        "quantized",
        f"llama.cpp {kind}: {scheme} per block of {_BLOCK}",
        "gguf",
        {"type": kind, "block_size": _BLOCK},
        bits=bits,
        bits_per_weight=bits + 8 * _HEADER[kind] / _BLOCK,
        kernels=("dequantized",),
        libraries=("gguf",),
    )


CONDITIONS = (
    _spec("Q8_0", 8, "uniform, absmax"),
    _spec("Q5_1", 5, "uniform, scale and minimum"),
    _spec("Q4_1", 4, "uniform, scale and minimum"),
    _spec("Q4_0", 4, "uniform, the value of largest magnitude at code 0"),
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head. (llama.cpp's own recipes treat some layers
    and the head otherwise; here all layers are alike, so that precisions can be compared.)

    Raises:
        NotInForceError: a layer's columns are no multiple of 32.
    """
    import torch

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(_round(spec, name, weight)[1])

    def read(_: str, weight: torch.Tensor) -> ModuleReading:
        block, size = blocks.sizes(str(spec.options["type"]))
        stored = weight.numel() // block * size
        return ModuleReading.of(weight, block, weight)._replace(stored_bytes=stored)

    return load_changed(spec, source, plan, change, read=read)


def _round(
    spec: ConditionSpec, name: str, weight: torch.Tensor
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The blocks, (out, bytes), and the weight that they stand for, (out, in)."""
    import gguf
    import numpy as np

    if weight.shape[1] % _BLOCK:
        raise NotInForceError(
            f"{spec.name}: the {weight.shape[1]} columns of {name} make no blocks of {_BLOCK}"
        )
    kind = getattr(gguf.GGMLQuantizationType, str(spec.options["type"]))
    exact = np.ascontiguousarray(weight.detach().float().cpu().numpy())
    with np.errstate(over="ignore", invalid="ignore"):  # infinite values are seen behind it
        packed = gguf.quants.quantize(exact, kind)
        return packed, np.array(gguf.quants.dequantize(packed, kind), dtype=np.float32)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """The codes of one weight, without a model, read from the packed blocks."""
    import torch

    packed, values = _round(spec, "the weight", weight)
    codes = blocks.codes(str(spec.options["type"]), packed)
    return Codes(torch.from_numpy(codes), torch.from_numpy(values))


def levels(spec: ConditionSpec, weight: torch.Tensor) -> Levels:
    """Levels and their neighbours; the grid hangs on a block's largest magnitude, or with a minimum
    on its lowest and highest value.
    """
    import torch

    packed, values = _round(spec, "the weight", weight)
    shape, kind = weight.shape, str(spec.options["type"])
    heads = packed.reshape(-1, packed.shape[-1] // (shape[1] // _BLOCK))[:, : _HEADER[kind]]
    scale, *_ = torch.from_numpy(heads.copy()).view(torch.float16).float().split(1, dim=1)
    exact = weight.float().reshape(-1, _BLOCK)
    codes = encode(spec, weight).codes.reshape(exact.shape).float()
    bottom, top = _ENDS[kind]
    own = torch.from_numpy(values).reshape(exact.shape)
    # Q4_0's scale may be negative: its levels then fall as codes rise.
    next_codes = [(codes + by * scale.sign()).clamp(bottom, top) for by in (-1, 1)]
    below, above = (own + (code - codes) * scale for code in next_codes)
    if kind in ("Q4_1", "Q5_1"):
        low, high = exact.amin(1, True), exact.amax(1, True)
    else:
        high, inf = exact.abs().amax(1, True), float("inf")
        low = -high
        if kind == "Q4_0":  # it hangs on one of the two only
            low, high = low.masked_fill(scale < 0, -inf), high.masked_fill(scale > 0, inf)
    found = Levels.of(exact, (below, own, above), (low, high))
    return Levels(*(level.reshape(shape) for level in found))
