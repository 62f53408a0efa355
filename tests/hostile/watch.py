"""What a block of code did to the machine, seen through Python's audit events and the files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_seen: list[str] | None = None
_root = ""
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "pty.spawn")
# The check of patterns runs one process, of Python alone; see checkpoints/limits.py.
_OURS = [sys.executable, "-I", "-c"]


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if _seen is None:
        return
    if event in _STARTS:
        _seen.append(f"{event} {given[:2]}")
    elif event == "subprocess.Popen" and list(given[1])[:3] != _OURS:
        _seen.append(f"{event} {given[1]}")
    elif event == "pickle.find_class" and given[0] in ("os", "posix", "builtins", "subprocess"):
        _seen.append(f"{event} {given}")
    elif event == "exec" and getattr(given[0], "co_filename", "").startswith(_root):
        _seen.append(f"{event} {given[0].co_filename}")
    elif event == "open" and _writes(given) and not str(given[0]).startswith(os.devnull):
        _seen.append(f"open {given[:2]}")


def _writes(given: tuple[Any, ...]) -> bool:
    mode, flags = given[1], given[2]
    if not isinstance(given[0], (str, bytes)):  # a descriptor that is open already
        return False
    if isinstance(mode, str):
        return bool(set(mode) & set("wax+"))
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


sys.addaudithook(_hook)


@contextmanager
def watched(root: Path) -> Iterator[list[str]]:
    """Collect processes, connections, code run from below ``root``, pickled calls and files opened
    for writing.
    """
    global _seen, _root
    _root = str(root)
    _seen = []
    try:
        yield _seen
    finally:
        _seen = None


def snapshot(root: Path) -> dict[str, tuple[int, int, int]]:
    """Kind, size and time of every file below ``root``."""
    found = {}
    for folder, names, files in os.walk(root):
        for name in names + files:
            facts = os.lstat(Path(folder) / name)
            found[f"{folder}/{name}"] = (facts.st_mode, facts.st_size, facts.st_mtime_ns)
    return found
