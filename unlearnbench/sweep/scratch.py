"""Folders of a process's own, which others remove once it has ended without doing so."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import zlib
from contextlib import suppress
from pathlib import Path

import psutil

_PREFIX = "ub-"


def own_folder(home: Path) -> Path:
    """A new one in ``home``; those of our processes that were killed are removed."""
    for old in home.glob(f"{_PREFIX}*-*"):
        with suppress(OSError):  # another was faster, or somebody else's link leads nowhere
            if old.lstat().st_uid == os.getuid() and not lives(old.name):
                shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{_here()}-{os.getpid()}-", dir=home))


def _here() -> str:
    """Where our numbers of processes mean anything: nodes and containers may share a folder."""
    place = platform.node()
    with suppress(OSError):  # Linux alone has it
        place += str(Path("/proc/self/ns/pid").readlink())
    return f"{zlib.crc32(place.encode()) & 0xFFFF:04x}"


def lives(name: str) -> bool:
    """Whether the process that made the folder may be there still."""
    found = re.match(rf"{_PREFIX}{_here()}-([0-9]{{1,9}})-", name)
    return found is None or psutil.pid_exists(int(found[1]))
