"""Safetensors files written tensor by tensor: the library's own writer wants all at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.find import TensorHead
from unlearnbench.errors import CheckpointError, one_line

if TYPE_CHECKING:
    import torch

_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
_BYTES |= {"BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}


def size_of(heads: Mapping[str, TensorHead]) -> int:
    """Bytes of the tensors; CheckpointError for a dtype that no unquantized checkpoint has."""
    odd = [name for name, head in heads.items() if head.dtype not in _BYTES]
    if odd:
        dtype = one_line(heads[odd[0]].dtype, 20)
        raise CheckpointError(f"tensor {one_line(odd[0], 120)} is of {dtype}; save it as float32")
    return sum(head.elements * _BYTES[head.dtype] for head in heads.values())


def write_shard(
    path: Path, heads: Mapping[str, TensorHead], give: Callable[[str], torch.Tensor]
) -> None:
    """Write a file of the tensors that ``heads`` describes, which ``give`` is asked for in their
    order. In memory is one of them. OSError where the disk does not take it.
    """
    import torch

    facts: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, head in heads.items():
        start, end = end, end + size_of({name: head})
        facts[name] = {"dtype": head.dtype, "shape": head.shape, "data_offsets": [start, end]}
    text = json.dumps(facts, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, head in heads.items():
            tensor = give(name).contiguous()
            content = tensor.flatten().view(torch.uint8).numpy()
            if content.nbytes != size_of({name: head}):
                raise ValueError(f"{name} is not of the size that was announced")
            file.write(content.data)


def write_index(folder: Path, homes: Mapping[str, str], size: int) -> None:
    """Say which file each tensor is in. size: bytes of all."""
    index = {"metadata": {"total_size": size}, "weight_map": dict(homes)}
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
