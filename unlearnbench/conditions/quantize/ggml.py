"""llama.cpp's K-quants and its non-uniform 4 bits, by llama.cpp's own library, with the mixtures of
its files: the weights in force are bit for bit what its quantizer writes for the same matrices.

Embeddings and the output head stay as they are, which a file has in Q6_K or Q8_0; so precisions can
be compared. A file that somebody deploys is measured as it is by ``--deployed``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import linear_layers, out_first
from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    Levels,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
)
from unlearnbench.conditions.proof import load_changed
from unlearnbench.conditions.quantize import blocks, recipes
from unlearnbench.conditions.quantize.imatrix import importance
from unlearnbench.errors import NotInForceError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_LEAST = 32  # columns of the smallest blocks
# Of a matrix's sum of squares. Two bits lose a tenth of it, and columns of no importance all.
_MOST_LOST = 0.5
_SCHEMES = {
    "Q2_K": "uniform, blocks of 256 with 4-bit scales and minima of 16 in it",
    "Q3_K": "uniform, blocks of 256 with 6-bit scales of 16 in it",
    "Q4_K": "uniform, blocks of 256 with 6-bit scales and minima of 32 in it",
    "Q5_K": "uniform, blocks of 256 with 6-bit scales and minima of 32 in it",
    "Q6_K": "uniform, blocks of 256 with 8-bit scales of 16 in it",
    "IQ4_NL": "16 fixed levels, blocks of 32",
    "IQ4_XS": "16 fixed levels, blocks of 256 with 6-bit scales of 32 in it",
}
SOLVED = True
# Of the linear layers of a Llama of 32 layers (4096 and 14336 wide, 8 key-value heads).
_BITS = {
    **{"Q2_K": 2.942, "Q3_K_S": 3.438, "Q3_K_M": 3.844, "Q3_K_L": 4.191, "Q4_K_S": 4.536},
    **{"Q4_K_M": 4.798, "Q5_K_S": 5.5, "Q5_K_M": 5.653, "Q6_K": 6.562, "IQ4_NL": 4.553},
    "IQ4_XS": 4.316,
}


def _spec(file: str, weighed: bool) -> ConditionSpec:
    kind = recipes.FILES[file]
    mixed = "" if file in ("Q6_K", "Q3_K_S", "Q5_K_S") else "; some matrices in more bits"
    how = ", rounding weighed by an importance matrix" if weighed else ""
    return ConditionSpec(
        f"gguf-{file.lower()}" + ("-imat" if weighed else ""),
        "quantized",
        f"llama.cpp {file}: {_SCHEMES[kind]}{mixed}{how}",
        "ggml",
        {"file": file, "type": kind, "importance": weighed},
        bits=blocks.TYPES[kind].bits,
        bits_per_weight=_BITS[file],
        kernels=("dequantized",),
        extra="ggml",
        libraries=("libggml", "gguf"),
        calibrated=weighed,
        by_matrix=True,
    )


CONDITIONS = tuple(_spec(file, weighed) for file in recipes.FILES for weighed in (False, True))


def for_matrix(
    spec: ConditionSpec, name: str, names: Sequence[str], config: Mapping[str, Any]
) -> ConditionSpec:
    """``spec`` with the type that it gives one of a model's matrices."""
    found = recipes.types(str(spec.options["file"]), names, config, spec.calibrated)
    return replace(spec, options={**spec.options, "type": found[name]})


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        PrecisionError: llama.cpp has another rule for this kind of model, or an importance matrix
            is of another model.
        NotInForceError: a layer's columns are no multiple of 32, or an importance matrix wipes
            its weights out, which would look like forgetting.
    """
    import torch

    layers = linear_layers(source.model())
    config = source.config.get_text_config().to_dict()
    chosen = recipes.types(str(spec.options["file"]), list(layers), config, spec.calibrated)
    for name, layer in layers.items():
        columns = out_first(layer, layer.weight).shape[1]
        if columns % _LEAST:
            raise NotInForceError(
                f"{spec.name}: the {columns} columns of {name} make no blocks of {_LEAST}"
            )
        chosen[name] = recipes.fitting(chosen[name], columns)
    weighed = importance(spec, source, plan) if spec.calibrated else {}

    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        kind, exact = chosen[name], _floats(weight)
        try:
            made = blocks.values(kind, blocks.quantize(kind, exact, weighed.get(name)))
        except NotInForceError as error:
            raise NotInForceError(f"{spec.name}: {name}: {error}") from None
        lost = float(((made - exact) ** 2).sum(dtype="f8"))
        if spec.calibrated and not lost <= _MOST_LOST * float((exact**2).sum(dtype="f8")):
            raise NotInForceError(
                f"{spec.name}: {name}: its importance is 0 over most blocks, or beyond what "
                "llama.cpp can add up, and wipes the weights out; use another --calibration"
            )
        return torch.from_numpy(made)

    def read(name: str, weight: torch.Tensor) -> ModuleReading:
        kind = chosen[name]
        block, size = blocks.sizes(kind)
        found = ModuleReading.of(weight, blocks.TYPES[kind].group, weight)
        stored = weight.numel() // block * size
        bits = blocks.TYPES[kind].bits
        return found._replace(stored_as=kind.lower(), stored_bytes=stored, bits=bits)

    return load_changed(spec, source, plan, change, read=read)


def _floats(weight: torch.Tensor) -> NDArray[np.float32]:
    found: NDArray[np.float32] = weight.detach().float().cpu().numpy()
    return found


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """The codes of one weight, without a model, in the type that ``for_matrix`` chose."""
    import torch

    kind = recipes.fitting(str(spec.options["type"]), weight.shape[1])
    packed = blocks.quantize(kind, _floats(weight))
    values = torch.from_numpy(blocks.values(kind, packed))
    return Codes(torch.from_numpy(blocks.codes(kind, packed)), values)


def levels(spec: ConditionSpec, weight: torch.Tensor) -> Levels:
    """Levels and their neighbours, in the type that ``for_matrix`` chose: a group's values go in
    equal steps by its codes, or as the entries of IQ4's table. llama.cpp searches for a group's
    constants on all its weights: they follow a weight that is moved, and nothing is fixed.
    """
    import torch

    kind = recipes.fitting(str(spec.options["type"]), weight.shape[1])
    codes, values = encode(spec, weight)
    size = blocks.TYPES[kind].group
    own, coded = (part.reshape(-1, size).double() for part in (values, codes))
    ends = [pick(1, keepdim=True) for pick in (coded.argmin, coded.argmax)]
    low, high = (own.gather(1, end) for end in ends)
    first, last = (coded.gather(1, end) for end in ends)
    step = ((high - low) / (last - first)).nan_to_num(0.0)  # of one code only: no neighbour
    table = torch.tensor(blocks.entries(kind), dtype=torch.float64)
    place = torch.searchsorted(table, coded)
    moved = [own + (table[(place + by).clamp(0, len(table) - 1)] - coded) * step for by in (-1, 1)]
    nearby = moved[0].minimum(moved[1]), own, moved[0].maximum(moved[1])  # steps may be below 0
    free = torch.full((len(own), 1), float("inf"))
    found = Levels.of(weight.float().reshape(own.shape), nearby, (-free, free))
    return Levels(*(level.reshape(weight.shape) for level in found))
