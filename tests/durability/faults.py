"""Faults at the layer that writes: every operation on files below a folder is counted, and from the
n-th on it fails, as on a full disk, or the process is gone.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest


class Gone(BaseException):
    """Stands for the death of the process: nothing after it is carried out either."""


class Faults:
    """Counts the operations that change files below ``root``, and fails from number ``at`` on.

    half: a write that fails puts the first half of its bytes there. gone: raise ``Gone``, and let
    no later operation through; else raise ENOSPC where bytes or names are added: what removes,
    shortens or closes works on a full disk.
    """

    ADDS = ("write", "fsync", "open", "mkdir", "replace", "rename")
    REMOVES = ("ftruncate", "unlink", "rmdir")

    def __init__(self, root: Path, at: int | None, *, half: bool, gone: bool) -> None:
        self.root, self.at, self.half, self.gone = str(root), at, half, gone
        self.seen: list[str] = []
        self.active = True

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in (*self.ADDS, *self.REMOVES):
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, original: Any) -> Any:
        def operation(first: Any, *rest: Any, **named: Any) -> Any:
            if not self.active or not self._is_ours(name, first, rest):
                return original(first, *rest, **named)
            counts = name in self.ADDS or self.gone
            if counts:
                self.seen.append(name)
            if not counts or self.at is None or len(self.seen) < self.at:
                return original(first, *rest, **named)
            if self.half and name == "write" and len(self.seen) == self.at:
                original(first, bytes(rest[0])[: len(rest[0]) // 2])
            if self.gone:
                raise Gone(f"{name}, number {self.at}")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return operation

    def _is_ours(self, name: str, first: Any, rest: tuple[Any, ...]) -> bool:
        if name == "open" and not rest[0] & (os.O_WRONLY | os.O_RDWR):
            return False
        if isinstance(first, int):
            try:
                path = str(Path(f"/proc/self/fd/{first}").readlink())
            except OSError:
                return False
        else:
            path = os.path.abspath(first)  # noqa: PTH100 - the path of a name that is not there yet
        return path.startswith(self.root) and not path.endswith(".lock")
