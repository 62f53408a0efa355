"""The head of a GGUF file, every count and length held against its size: libraries trust it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from unlearnbench.checkpoints.limits import check_numbers
from unlearnbench.errors import CheckpointError, one_line

_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
_TEXT, _ARRAY = 8, 9
# The largest GGUF files in use: some 1,500 tensors, 60 keys, and 4 arrays of 262,144 tokens.
_KEYS, _TENSORS, _ITEMS, _NAME = 2**12, 2**16, 2**22, 2**12


def require_gguf_support() -> None:
    """Transformers 5.23 reads GGUF files bit for bit; 5.20.2 into other weights, without a word."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version("5.23"):
        raise CheckpointError(
            f"transformers {transformers.__version__} reads GGUF files wrongly; update it to 5.23 "
            "or later (Python 3.11), or convert the file to a checkpoint folder"
        )


def read_gguf_head(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor by name; CheckpointError for damage and absurd numbers."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file; its first bytes are not 'GGUF'")
            keys, tensors = _read(_Reader(file, path.stat().st_size))
    except (ValueError, LookupError, struct.error, OSError) as error:
        raise damaged(path, error) from None
    check_numbers(keys, str(path))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What a weight file that is cut short or garbled ends in."""
    said = one_line(error, 150)
    return CheckpointError(f"{path} is truncated or damaged ({said}); copy or download it again")


@dataclass
class _Reader:
    """Takes values from the head of a GGUF file; raises ValueError for those that cannot be."""

    file: BinaryIO
    size: int
    """Bytes of the whole file."""
    items: int = 0
    """Items of all arrays so far."""

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(f"a length of {count} reaches beyond the file")
        return self.file.read(count)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]

    def name(self) -> str:
        length = self.number("<Q")
        if length > _NAME:
            raise ValueError(f"a name of {length} bytes")
        return self.take(length).decode("utf-8")

    def value(self) -> int | None:
        """The number behind its type; texts and arrays are passed over."""
        kind, count = self.number("<I"), 1
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            self.items += count
            if self.items > _ITEMS:
                raise ValueError(f"arrays of more than {_ITEMS:,} items")
        if kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _TEXT:
            for _ in range(count):
                self.take(self.number("<Q"))
        else:
            raise ValueError(f"a value of unknown type {kind}")
        return None


def _read(reader: _Reader) -> tuple[dict[str, int | None], dict[str, tuple[str, tuple[int, ...]]]]:
    """Keys with their numbers, and the tensors."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version = reader.number("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, of which only 2 and 3 can be read")
    count, key_count = reader.number("<Q"), reader.number("<Q")
    if count > _TENSORS or key_count > _KEYS:
        raise ValueError(f"{count:,} tensors and {key_count:,} keys")
    keys: dict[str, int | None] = {}
    for _ in range(key_count):
        name = reader.name()
        if name in keys:
            raise ValueError(f"key {one_line(name, 60)} stands there twice")
        keys[name] = reader.value()
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    places: list[tuple[int, int]] = []
    for _ in range(count):
        name, dimensions = reader.name(), reader.number("<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(reader.number("<Q") for _ in range(dimensions))
        kind = GGMLQuantizationType(reader.number("<I"))  # ValueError for one that is none
        block, width = GGML_QUANT_SIZES[kind]
        if name in tensors:
            raise ValueError(f"tensor {one_line(name, 60)} stands there twice")
        tensors[name] = kind.name, shape
        places.append((reader.number("<Q"), math.prod(shape) // block * width))
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {one_line(alignment, 20)}")
    end, start = 0, -(-reader.file.tell() // alignment) * alignment
    for offset, size in sorted(places):
        if offset < end:
            raise ValueError("two tensors overlap")
        end = offset + size
        if start + end > reader.size:
            raise ValueError(f"a tensor ends {start + end - reader.size:,} bytes beyond the file")
    return keys, tensors
