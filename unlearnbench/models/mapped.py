"""Weights whose memory is that of their file, which the kernel can take back."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_DONTNEED = 4  # Linux' MADV_DONTNEED
_SMAPS = Path("/proc/self/smaps")


@dataclass(frozen=True)
class _Mapping:
    """Addresses of a file in memory. written: somebody wrote to them, so the file has others."""

    start: int
    end: int
    path: str
    written: bool


def give_back(tensors: Iterable[torch.Tensor], files: Collection[Path]) -> int:
    """Give the memory of ``tensors`` back, if all of it is that of ``files``, mapped and not
    written to: whoever reads a tensor next gets its file's bytes again, mostly from the kernel's
    cache. Else, and where the system is not Linux, nothing is done: other memory (huge pages too,
    whose mappings look like those of files) would come back as zeros.

    Returns:
        Bytes of the tensors, or 0 where nothing was done.
    """
    found, sizes = set[_Mapping](), dict[int, int]()
    paths = {os.path.realpath(path) for path in files}
    try:
        mappings = [mapping for mapping in _mappings() if mapping.path in paths]
    except (OSError, ValueError):  # no Linux, hidden from us, or not as proc(5) has it
        return 0
    for tensor in tensors:
        start, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
        holding = [m for m in mappings if m.start <= start and start + size <= m.end]
        if not holding or holding[0].written:
            return 0
        found.add(holding[0])
        sizes[start] = size
    return sum(sizes.values()) if all(_advise(mapping) for mapping in found) else 0


def _mappings() -> Iterator[_Mapping]:
    """Those of files, from /proc (proc(5): smaps)."""
    start = end = copied = 0
    name = ""
    text = _SMAPS.read_text(encoding="utf-8", errors="surrogateescape")
    for line in [*filter(None, text.split("\n")), "0-0 end"]:  # a name may have other line ends
        first, *rest = line.split(maxsplit=5)
        if first.endswith(":"):
            # A page that was written to is a copy, no file's. (Dirty is one of a new file, too.)
            if first in ("Anonymous:", "Swap:"):
                copied += int(rest[0])
            continue
        if name:
            yield _Mapping(start, end, name, copied > 0)
        start, end = (int(place, 16) for place in first.split("-"))
        name, copied = rest[4] if len(rest) > 4 else "", 0


def _advise(mapping: _Mapping) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    size = mapping.end - mapping.start
    done = libc.madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(size), _DONTNEED)
    return int(done) == 0
