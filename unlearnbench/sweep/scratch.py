"""Folders of a process's own, which others remove once it has ended without doing so."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
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
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=home))


def lives(name: str) -> bool:
    """Whether the process that made the folder may be there still."""
    found = re.match(rf"{_PREFIX}([0-9]{{1,9}})-", name)
    return found is None or psutil.pid_exists(int(found[1]))
