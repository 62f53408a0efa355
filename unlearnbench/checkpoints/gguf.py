"""The head of a GGUF file, read with every count and length held against the file's size.

The libraries' reader trusts the file: it would take gigabytes for some megabytes of empty texts.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unlearnbench.checkpoints.counts import check_numbers
from unlearnbench.errors import CheckpointError, one_line

_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
_TEXT, _ARRAY = 8, 9
# The largest in use: some 1,500 tensors, 60 keys, and 4 arrays of 262,144 tokens.
_KEYS, _TENSORS, _ITEMS, _NAME = 2**12, 2**16, 2**22, 2**12


class _Fault(Exception):
    """What is wrong with the head."""


@dataclass
class _Head:
    file: BinaryIO
    size: int
    items: int = 0

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise _Fault(f"a length of {count} reaches beyond the file")
        return self.file.read(count)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]

    def text(self, most: int | None = None) -> bytes:
        length = self.number("<Q")
        if most is not None and length > most:
            raise _Fault(f"a name of {length} bytes")
        return self.take(length)

    def value(self, kind: int) -> object:
        """One value; a text and an array are passed over."""
        if kind == _TEXT:
            self.text()
            return None
        if kind == _ARRAY:
            self._array(self.number("<I"), self.number("<Q"))
            return None
        if kind not in _SCALARS:
            raise _Fault(f"a value of unknown type {kind}")
        return self.number(_SCALARS[kind])

    def _array(self, kind: int, count: int) -> None:
        self.items += count
        if self.items > _ITEMS:
            raise _Fault(f"arrays of more than {_ITEMS:,} items")
        if kind == _TEXT:
            for _ in range(count):
                self.text()
        elif kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        else:
            raise _Fault(f"an array of type {kind}")


def check_gguf(path: Path) -> None:
    """Check keys, sizes, types and places of everything that the head names.

    Raises:
        CheckpointError: it is damaged or names absurd numbers.
    """
    try:
        with path.open("rb") as file:
            file.seek(4)  # behind "GGUF", which ``find_checkpoint`` has seen
            facts = _read_head(_Head(file, path.stat().st_size))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    except (_Fault, struct.error, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({one_line(error, 150)}); copy or download it again"
        ) from None
    check_numbers(facts, str(path))


def _read_head(head: _Head) -> dict[str, object]:
    version = head.number("<I")
    if version not in (2, 3):
        raise _Fault(f"version {version}, of which only 2 and 3 can be read")
    tensors, keys = head.number("<Q"), head.number("<Q")
    if tensors > _TENSORS or keys > _KEYS:
        raise _Fault(f"{tensors:,} tensors and {keys:,} keys")
    facts: dict[str, object] = {}
    for _ in range(keys):
        name = head.text(_NAME).decode("utf-8")
        if name in facts:
            raise _Fault(f"key {one_line(name, 60)} stands there twice")
        facts[name] = head.value(head.number("<I"))
    places = [_tensor(head) for _ in range(tensors)]
    alignment = facts.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise _Fault(f"alignment {one_line(alignment, 20)}")
    start = -(-head.file.tell() // alignment) * alignment
    _check_places(places, head.size - start)
    return facts


def _tensor(head: _Head) -> tuple[int, int]:
    """Where a tensor's bytes begin, and how many there are."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    head.text(_NAME).decode("utf-8")
    dimensions = head.number("<I")
    if not 1 <= dimensions <= 4:
        raise _Fault(f"a tensor of {dimensions} dimensions")
    shape = [head.number("<Q") for _ in range(dimensions)]
    kind, offset = head.number("<I"), head.number("<Q")
    try:
        block, width = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        raise _Fault(f"a tensor of unknown type {kind}") from None
    return offset, math.prod(shape) // block * width


def _check_places(places: list[tuple[int, int]], room: int) -> None:
    end = 0
    for offset, size in sorted(places):
        if offset < end:
            raise _Fault("two tensors overlap")
        end = offset + size
        if end > room:
            raise _Fault(f"a tensor ends {end - room:,} bytes beyond the file")
