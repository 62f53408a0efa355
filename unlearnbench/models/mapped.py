"""Weights whose memory is that of their file, which the kernel can take back."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["give_back"]

_DONTNEED = 4  # Linux' MADV_DONTNEED


@dataclass(frozen=True)
class _Mapping:
    """Addresses of a file in memory. written: somebody wrote to them, so the file has others."""

    start: int
    end: int
    written: bool


def give_back(tensors: Iterable[torch.Tensor]) -> int:
    """Give the memory of ``tensors`` back, if all of it is that of files which were mapped and not
    written to: whoever reads a tensor next gets its file's bytes again, mostly from the kernel's
    cache. Else, and where the system is not Linux, nothing is done.

    Returns:
        Bytes of the tensors, or 0 where nothing was done.
    """
    found, sizes = set[_Mapping](), dict[int, int]()
    mappings = [*_mappings()]
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
    path = Path("/proc/self/smaps")
    if not path.exists():
        return
    start = end = copied = 0
    of_file = False
    for line in [*path.read_text(encoding="utf-8", errors="replace").splitlines(), "0-0 end"]:
        first, *rest = line.split()
        if first.endswith(":"):
            # A page that was written to is a copy, no file's. (Dirty is one of a new file, too.)
            if first in ("Anonymous:", "Swap:"):
                copied += int(rest[0])
            continue
        if of_file:
            yield _Mapping(start, end, copied > 0)
        start, end = (int(place, 16) for place in first.split("-"))
        of_file, copied = len(rest) > 4 and rest[4].startswith("/"), 0


def _advise(mapping: _Mapping) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    size = mapping.end - mapping.start
    done = libc.madvise(ctypes.c_void_p(mapping.start), ctypes.c_size_t(size), _DONTNEED)
    return int(done) == 0
