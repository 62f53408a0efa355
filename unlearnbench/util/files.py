"""Files. Those we write appear whole or not at all, or grow by whole lines, whatever happens to the
process. Those we read may be a stranger's: no pipe is waited for, and nothing absurdly large is
taken in.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.errors import (
    InUseError,
    OutputError,
    ResultError,
    UnlearnbenchError,
    one_line,
)

LOCK_FILES = (".lock", ".holder")

# A file that is not whole yet; a killed process leaves it behind, and the next one removes it.
_PREFIX, _SUFFIX = ".writing-", ".tmp"
# Seconds between two fsyncs of a file that grows. What was handed to the system survives the death
# of the process at once, so this bounds only what a power failure takes; and it keeps the disk out
# of the way where answers come by the hundred in a second.
_SYNC_EVERY = 1.0

log = logging.getLogger("unlearnbench")


def is_full(error: OSError) -> bool:
    """Whether nothing more can be written there: no space, no quota, or mounted read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@contextmanager
def writing(
    path: Path,
    error: type[UnlearnbenchError] = OutputError,
    remedy: str = "free some space or use another --output",
) -> Iterator[None]:
    """Turn an OSError of what is inside into ``error``, which names ``path`` and what to do."""
    try:
        yield
    except OSError as failed:
        raise error(f"{path} cannot be written ({failed.strerror}); {remedy}") from None


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


def write_text(path: Path, text: str) -> None:
    """Write a file that the user named. Raises ResultError where it cannot be written."""
    with writing(path, ResultError, "give another path"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes had not written whole. Only under the folder's lock."""
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        with contextlib.suppress(OSError):
            path.unlink()


def link(path: str | Path, place: str | Path) -> None:
    """Have a file under a second name, without a copy where the file system can."""
    try:
        os.link(Path(path).resolve(), place)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, place)


def share(path: Path) -> None:
    """Give a file that was made private the rights that the umask allows."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


class Appender:
    """Appends lines to a file. A line is with the operating system when ``add`` returns, so no
    death of this process takes it; it is on the disk a second later at most, or after ``close``.
    """

    def __init__(self, path: Path, keep: int) -> None:
        """Open ``path`` for writing after its first ``keep`` bytes; the rest, half a line of a
        killed process, is cut off.
        """
        self._path, self._end = path, keep
        with writing(path):
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
        with writing(self._path):
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
        with writing(self._path):
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


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` where it is not there, and hold its lock. Never waits.

    The lock is the kernel's (flock), on the empty file ``.lock``: a dead process holds none. The
    file stays, since removing it would let two in. ``.holder`` says who holds it, for messages.

    Raises:
        InUseError: another process holds it.
        ResultError: this file system has no locks.
    """
    from filelock import FileLock, Timeout

    lock, holder = (folder / name for name in LOCK_FILES)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        with warnings.catch_warnings():
            # Where there is no flock, a marker file takes its place, and filelock says so.
            warnings.simplefilter("ignore")
            held.acquire(timeout=0)
    except Timeout:
        raise InUseError(
            f"{folder} is being written by {_holder(holder) or 'another process'}; wait for it to "
            "end, or use another --output"
        ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and is_full(error):
            with writing(folder):
                raise
        raise ResultError(
            f"{folder} cannot be locked against a second writer ({one_line(error, 200)}); use an "
            "--output on a local disk"
        ) from None
    try:
        last, host = _holder(holder), one_line(platform.node(), 80)
        if last is not None and not last.endswith(f" on host {host}"):
            # A file system whose locks end at the host would let two in, one on each host.
            log.warning(
                "%s was last written by %s, which did not end it: make sure that it is not running "
                "there still, for not every network file system keeps out a second host",
                folder,
                last,
            )
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name on it
            holder.write_text(json.dumps({"pid": os.getpid(), "host": platform.node()}))
        yield
    finally:
        try:
            with contextlib.suppress(OSError):
                holder.unlink(missing_ok=True)
        finally:
            held.release()


def _holder(file: Path) -> str | None:
    """``process PID on host HOST``, where the file says so. Another user may have written it."""
    try:
        found = json.loads(file.read_bytes())
        return f"process {int(found['pid'])} on host {one_line(found['host'], 80)}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def file_sha256(path: Path, error: type[UnlearnbenchError]) -> str:
    """SHA-256 of a file of any size. Raises ``error`` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**22):  # hashlib.file_digest needs Python 3.11
                digest.update(block)
    except OSError as failed:
        raise error(f"{path} cannot be read ({failed.strerror})") from None
    return digest.hexdigest()


def content_sha256(value: object) -> str:
    """SHA-256 of a JSON value, keys sorted: the same content always hashes the same."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_bytes(path: Path, error: type[UnlearnbenchError], most: int | None = None) -> bytes:
    """The content of a file.

    Raises:
        error: it cannot be read, is no regular file, or is larger than ``most`` bytes.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise error(f"{path} is no regular file")  # a pipe would never end
        if most is not None and path.stat().st_size > most:
            size = f"{most >> 20} MiB" if most >= 2**20 else f"{most >> 10} KiB"
            raise error(f"{path} is larger than {size}; refused")
        return path.read_bytes()
    except OSError as failed:
        raise error(f"{path} cannot be read ({failed.strerror})") from None


def read_json(path: Path, error: type[UnlearnbenchError], most: int | None = None) -> object:
    """A JSON file's value. Raises ``error`` as ``read_bytes``, and where it is no JSON."""
    return parse_json(path, read_bytes(path, error, most), error)


def parse_json(path: Path, content: bytes, error: type[UnlearnbenchError]) -> object:
    """What ``path`` holds, or a line of it; NaN and Infinity, which are no JSON, are taken. Raises
    ``error`` for all else that is no JSON.
    """
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError) as failed:
        raise error(f"{path} is no valid JSON: {one_line(failed, 150)}") from None
    return value
