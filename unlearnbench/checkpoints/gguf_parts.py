"""A GGUF file that is read as it is, one or several (``model-00001-of-00003.gguf``), for weights
that go into a model whose config is known. Looked at before a library does.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.checkpoints.find import TensorHead
from unlearnbench.checkpoints.gguf import damaged, read_gguf_head
from unlearnbench.errors import CheckpointError, one_line

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_MOST_PARTS = 1000
_VALUES = ("F32", "F16", "BF16")
_WORDS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class GgufFile:
    """An open GGUF file."""

    path: str
    """As given."""
    parts: tuple[Path, ...]
    tensors: Mapping[str, TensorHead]
    """Of all parts, by llama.cpp's names; a shape is in llama.cpp's order, columns first."""
    said: Mapping[str, Any]
    """Its metadata; of a list of texts only the tokens."""

    @property
    def architecture(self) -> str:
        """As llama.cpp calls it."""
        return str(self.said.get("general.architecture"))

    @property
    def words(self) -> list[str]:
        """Its tokens, in the order of their ids; empty where it has none."""
        found = self.said.get(_WORDS)
        return found if isinstance(found, list) else []

    @property
    def size(self) -> int:
        """Weights of all tensors."""
        return sum(tensor.elements for tensor in self.tensors.values())

    def number(self, key: str) -> float | None:
        """What the metadata say under ``<architecture>.key``, where that is a number."""
        value = self.said.get(f"{self.architecture}.{key}")
        return float(value) if isinstance(value, (int, float)) else None

    def packed(self) -> Counter[str]:
        """Weights of each type, of the tensors that hold blocks."""
        found = Counter[str]()
        for tensor in self.tensors.values():
            found[tensor.dtype] += tensor.elements
        return Counter({kind: n for kind, n in found.items() if kind not in _VALUES})


def open_gguf(path: Path, name: str) -> GgufFile:
    """Read the heads of all parts. name: as given.

    Raises:
        CheckpointError: a part is missing or damaged, parts do not belong together, or a tensor has
            a type that gguf-py does not read.
    """
    parts = _parts(path)
    tensors: dict[str, TensorHead] = {}
    for part in parts:
        for key, head in read_gguf_head(part).items():
            if key in tensors:
                raise CheckpointError(f"{part}: tensor {one_line(key, 60)} is in another part too")
            tensors[key] = TensorHead(*head)
    for key, tensor in tensors.items():
        if not readable(tensor.dtype):
            raise CheckpointError(
                f"{name}: tensor {one_line(key, 60)} is of type {tensor.dtype}, which gguf-py does "
                "not read; update gguf, or make the file in another type"
            )
    if len(parts) > 1:
        _require_whole(parts, len(tensors))
    return GgufFile(name, parts, tensors, _metadata(parts[0]))


@functools.cache
def readable(kind: str) -> bool:
    """Whether gguf-py gives the values of blocks of a type."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

    if kind in _VALUES:
        return True
    found = GGMLQuantizationType[kind]
    try:
        quants.dequantize(np.zeros((1, GGML_QUANT_SIZES[found][1]), np.uint8), found)
    except NotImplementedError:
        return False
    return True


def _parts(path: Path) -> tuple[Path, ...]:
    """All parts of a split file, whichever of them is given."""
    match = _PART.fullmatch(path.name)
    if match is None:
        return (path,)
    count = int(match[3])
    if not 1 <= int(match[2]) <= count <= _MOST_PARTS:
        raise CheckpointError(f"{path} is by its name no part of 1 to {_MOST_PARTS}")
    parts = tuple(path.with_name(f"{match[1]}-{n + 1:05}-of-{match[3]}.gguf") for n in range(count))
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f"{path} is one of {count} parts, and {part.name} is not there")
    return parts


def _metadata(path: Path) -> dict[str, Any]:
    from transformers.integrations.gguf.reader import read_gguf_metadata

    try:
        return dict(read_gguf_metadata(str(path), {_WORDS})[0])
    except Exception as error:  # whatever the library meets that the head's check let pass
        raise damaged(path, error) from None


def _numbers(path: Path, *keys: str) -> tuple[object, ...]:
    """What a part's head says, of which all but the first have not much."""
    from gguf import GGUFReader

    try:
        fields = [GGUFReader(path).get_field(key) for key in keys]
        return tuple(None if field is None else field.contents() for field in fields)
    except Exception as error:  # it has no errors of its own
        raise damaged(path, error) from None


def _require_whole(parts: tuple[Path, ...], tensors: int) -> None:
    for number, part in enumerate(parts):
        found = _numbers(part, "split.no", "split.count")
        if found != (number, len(parts)):
            raise CheckpointError(
                f"{part} says that it is part {found[0]} of {found[1]} (split.no, split.count), "
                f"and its name says {number} of {len(parts)}; copy the parts again"
            )
    (due,) = _numbers(parts[0], "split.tensors.count")
    if due != tensors:
        raise CheckpointError(
            f"{parts[0]}: its parts hold {tensors} tensors together, and it says {due} "
            "(split.tensors.count); copy the parts again"
        )
