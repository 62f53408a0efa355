"""Files. Those we write appear whole or not at all, or grow by whole lines, whatever happens to the
process. Those we read may be a stranger's: no pipe is waited for, and nothing absurdly large is
taken in.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from unlearnbench.errors import OutputError, ResultError, UnlearnbenchError, one_line

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound="BaseModel")

# A file that is not whole yet; a killed process leaves it behind, and the next one removes it.
_PREFIX, _SUFFIX = ".writing-", ".tmp"
# Seconds between two fsyncs of a file that grows. What was handed to the system survives the death
# of the process at once, so this bounds only what a power failure takes; and it keeps the disk out
# of the way where answers come by the hundred in a second.
_SYNC_EVERY = 1.0


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
    content = read_bytes(path, error, most)
    try:
        value: object = json.loads(content)
    except (ValueError, RecursionError) as failed:
        raise error(f"{path} is no valid JSON: {one_line(failed, 150)}") from None
    return value


def read_model(
    path: Path, kind: type[M], error: type[UnlearnbenchError], most: int | None = None
) -> M:
    """A JSON file as ``kind``. Raises ``error`` as ``read_json``, and where it is no ``kind``,
    with the field's place. A YAML file: ``util.yaml.read_yaml_model``.
    """
    return as_model(path, read_json(path, error, most), kind, error)


def as_model(where: object, content: object, kind: type[M], error: type[UnlearnbenchError]) -> M:
    """``content``, which was found at ``where``, as ``kind``; ``error`` where it is none."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(content)
    except ValidationError as failed:
        raise error(f"{where}: {first_fault(failed)}") from None


def first_fault(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: ``field.place: what``."""
    first = error.errors(include_url=False)[0]
    place, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
    return one_line(f"{one_line(place, 200)}: {message}" if place else message, 400)
