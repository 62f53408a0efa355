"""The heads of weight files: which tensors there are, read and checked before any weight is.

Safetensors are checked by their own library. A GGUF file's head is read here, with every count and
length held against the file's size, because the libraries' reader trusts the file: it would take
gigabytes for some megabytes of empty texts.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from unlearnbench.checkpoints.limits import check_numbers
from unlearnbench.errors import CheckpointError, one_line

# safetensors itself takes 100 MB; a head of 100,000 tensors has some 12 MB.
_MAX_HEAD = 32 * 2**20
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
_TEXT, _ARRAY = 8, 9
# The largest GGUF files in use: some 1,500 tensors, 60 keys, and 4 arrays of 262,144 tokens.
_KEYS, _TENSORS, _ITEMS, _NAME = 2**12, 2**16, 2**22, 2**12


class TensorHead(NamedTuple):
    """One stored tensor."""

    dtype: str
    """As the file calls it: ``BF16``, ``Q4_0``."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many weights it has."""
        return math.prod(self.shape)


def read_safetensors_head(path: Path) -> dict[str, TensorHead]:
    """The tensors of a safetensors file by name: finds truncation and damage before anything is
    allocated.

    Raises:
        CheckpointError: it is damaged or holds nothing.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if _MAX_HEAD < length < path.stat().st_size:
            raise CheckpointError(f"{path} has a head of {length:,} bytes; refused")
        tensors = {}
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                tensors[name] = TensorHead(part.get_dtype(), tuple(part.get_shape()))
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from None
    except MemoryError:  # as it is mapped
        raise CheckpointError(f"{path} is larger than the memory this process may use") from None
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def read_gguf_head(path: Path) -> dict[str, TensorHead]:
    """The tensors of a GGUF file by name. Checks the keys, sizes, types and places of everything
    that the head names.

    Raises:
        CheckpointError: it is no GGUF file, damaged, or names absurd numbers.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file; its first bytes are not 'GGUF'")
            facts, tensors = _read_gguf(_Reader(file, path.stat().st_size))
    except (_Fault, struct.error, UnicodeDecodeError, OSError) as error:
        raise _damaged(path, error) from None
    check_numbers(facts, str(path))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path} is truncated or damaged ({one_line(error, 150)}); copy or download it again"
    )


class _Fault(Exception):
    """What is wrong with a GGUF file's head."""


@dataclass
class _Reader:
    """Takes values from the head of a GGUF file."""

    file: BinaryIO
    size: int
    """Bytes of the whole file."""
    items: int = 0
    """Items of all arrays so far."""

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise _Fault(f"a length of {count} reaches beyond the file")
        return self.file.read(count)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]

    def name(self) -> str:
        length = self.number("<Q")
        if length > _NAME:
            raise _Fault(f"a name of {length} bytes")
        return self.take(length).decode("utf-8")

    def value(self) -> object:
        """One value behind its type; a text and an array are passed over."""
        kind = self.number("<I")
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _TEXT:
            self.take(self.number("<Q"))
        elif kind == _ARRAY:
            self._pass_array(self.number("<I"), self.number("<Q"))
        else:
            raise _Fault(f"a value of unknown type {kind}")
        return None

    def _pass_array(self, kind: int, count: int) -> None:
        self.items += count
        if self.items > _ITEMS:
            raise _Fault(f"arrays of more than {_ITEMS:,} items")
        if kind == _TEXT:
            for _ in range(count):
                self.take(self.number("<Q"))
        elif kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise _Fault(f"an array of type {kind}")


def _read_gguf(reader: _Reader) -> tuple[dict[str, object], dict[str, TensorHead]]:
    """Keys with their numbers, and the tensors."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version = reader.number("<I")
    if version not in (2, 3):
        raise _Fault(f"version {version}, of which only 2 and 3 can be read")
    count, keys = reader.number("<Q"), reader.number("<Q")
    if count > _TENSORS or keys > _KEYS:
        raise _Fault(f"{count:,} tensors and {keys:,} keys")
    facts: dict[str, object] = {}
    for _ in range(keys):
        name = reader.name()
        if name in facts:
            raise _Fault(f"key {one_line(name, 60)} stands there twice")
        facts[name] = reader.value()
    tensors: dict[str, TensorHead] = {}
    places = []
    for _ in range(count):
        name, dimensions = reader.name(), reader.number("<I")
        if not 1 <= dimensions <= 4:
            raise _Fault(f"a tensor of {dimensions} dimensions")
        shape = tuple(reader.number("<Q") for _ in range(dimensions))
        kind, offset = reader.number("<I"), reader.number("<Q")
        try:
            block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise _Fault(f"a tensor of unknown type {kind}") from None
        if name in tensors:
            raise _Fault(f"tensor {one_line(name, 60)} stands there twice")
        tensors[name] = TensorHead(GGMLQuantizationType(kind).name, shape)
        places.append((offset, tensors[name].elements // block * width))
    alignment = facts.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Fault(f"alignment {one_line(alignment, 20)}")
    start = -(-reader.file.tell() // alignment) * alignment
    _check_places(places, reader.size - start)
    return facts, tensors


def _check_places(places: list[tuple[int, int]], room: int) -> None:
    """places: offset and bytes of each tensor. room: bytes behind the head."""
    end = 0
    for offset, size in sorted(places):
        if offset < end:
            raise _Fault("two tensors overlap")
        end = offset + size
        if end > room:
            raise _Fault(f"a tensor ends {end - room:,} bytes beyond the file")
