"""Files that survive what happens to the process that writes them: whole or not at all, or line by
line. Everything that a run folder keeps goes through here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.errors import OutputError

# A file that is not whole yet; a killed process leaves it behind, and the next one removes it.
_PREFIX, _SUFFIX = ".writing-", ".tmp"
# Seconds between two fsyncs of a file that grows. What was handed to the system survives the death
# of the process at once, so this bounds only what a power failure takes; and it keeps the disk out
# of the way where answers come by the hundred in a second.
_SYNC_EVERY = 1.0


def content_sha256(value: object) -> str:
    """SHA-256 of a JSON value, keys sorted: the same content always hashes the same."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def is_full(error: OSError) -> bool:
    """Whether nothing more can be written there: no space, no quota, or mounted read-only."""
    import errno

    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def saying_why(path: Path) -> Iterator[None]:
    """Turn an OSError into an OutputError that names ``path`` and what to do."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written ({error.strerror}); free some space or use another --output"
        ) from None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, also where the power fails. Raises OSError where it
    cannot be written; the file is then what it was before.
    """
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX, suffix=_SUFFIX)
    try:
        try:
            _write_all(descriptor, content)
            os.fsync(descriptor)  # before the name: a name without content is what this is against
        finally:
            os.close(descriptor)
        share(Path(name))
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    _sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had not written whole. Only under the folder's lock."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


class Appender:
    """Appends lines to a file. A line is with the operating system when ``add`` returns, so no
    death of this process takes it; it is on the disk a second later at most, or after ``close``.

    keep: bytes from the start that are good; the rest, half a line of a killed process, is cut off.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self._path, self._end = path, keep
        with saying_why(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            new = not path.exists()
            flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = os.open(path, flags, 0o666)
            try:
                os.ftruncate(self._descriptor, keep)
                os.lseek(self._descriptor, keep, os.SEEK_SET)
                if new:
                    _sync_folder(path.parent)
            except BaseException:
                os.close(self._descriptor)
                raise
        self._synced = time.monotonic()

    def add(self, lines: bytes) -> None:
        """Append whole lines.

        Raises:
            OutputError: they could not be written; the file ends with the line before them.
        """
        with saying_why(self._path):
            try:
                _write_all(self._descriptor, lines)
            except OSError:
                with contextlib.suppress(OSError):  # else the next reader drops the half line
                    os.ftruncate(self._descriptor, self._end)
                raise
            self._end += len(lines)
            if time.monotonic() - self._synced >= _SYNC_EVERY:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()

    def close(self) -> None:
        """Close the file, its lines on the disk.

        Raises:
            OutputError: the disk does not take them.
        """
        with saying_why(self._path):
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:  # a signal, or a disk that fills up, may cut a write short
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: Path) -> None:
    """Have a name that was added or replaced survive a power failure, where the system can."""
    with contextlib.suppress(OSError):  # not on Windows, nor on some network file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def share(path: Path) -> None:
    """Give a file that was made private the rights that the umask allows."""
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
