"""Where a sweep's record and results are: a folder that all nodes see, or an object store."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from unlearnbench.errors import ResultError, StoreError
from unlearnbench.runs.folder import require_writable
from unlearnbench.sweep import store as stores
from unlearnbench.sweep.claim import is_product, read_claim
from unlearnbench.sweep.lease import EVENTS, KEY, SILENCE, Lease, has_ended, whole
from unlearnbench.sweep.store import (
    Store,
    at_once,
    is_address,
    require_address,
    require_conditions,
)
from unlearnbench.util.files import (
    LOCK_FILES,
    Appender,
    lock_folder,
    read_bytes,
    read_json,
    write_whole,
    writing,
)

_LARGEST = 2**30
_SEGMENT = 2**16


class Log(Protocol):
    """Whole lines, which are kept when ``add`` returns."""

    def add(self, lines: bytes) -> None: ...

    def close(self) -> None: ...


class Home(Protocol):
    """Where a sweep's record and results are. Names are relative to it."""

    where: str
    """As a person gives it."""

    def lead(self) -> AbstractContextManager[None]:
        """Be the one process that writes there. Raises InUseError where another does."""
        ...

    def is_led(self) -> bool:
        """Whether a process does."""
        ...

    def holds(self, name: str) -> bool:
        """Whether anything is there of that name."""
        ...

    def read(self, name: str) -> bytes | None:
        """A file; None where there is none."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file whole."""
        ...

    def events(self) -> bytes:
        """The record."""
        ...

    def log(self, keep: int) -> Log:
        """The record, to be added to behind its first ``keep`` bytes."""
        ...

    def publish(self, job: str) -> None:
        """Have what a job has made in its place, where it is not there already."""
        ...

    def settle(self, job: str) -> None:
        """The record has it: remove what only its tries needed."""
        ...

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        """By each file that is there, what tells its content from another."""
        ...

    def worker(self, job: str) -> Mapping[str, Any]:
        """Who does a job: ``host`` and ``pid``; empty where nobody says it."""
        ...


class FolderHome:
    """A folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)

    @contextmanager
    def lead(self) -> Iterator[None]:
        require_writable(self.path)
        with lock_folder(self.path / "sweep"):
            yield

    def is_led(self) -> bool:
        lock = FileLock(self.path / "sweep" / LOCK_FILES[0])
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        lock.release()
        return False

    def holds(self, name: str) -> bool:
        return (self.path / name).exists()

    def read(self, name: str) -> bytes | None:
        path = self.path / name
        return read_bytes(path, ResultError, _LARGEST) if path.is_file() else None

    def write(self, name: str, content: bytes) -> None:
        with writing(self.path / name):
            write_whole(self.path / name, content)

    def events(self) -> bytes:
        return self.read("sweep/events.jsonl") or b""

    def log(self, keep: int) -> Log:
        return Appender(self.path / "sweep/events.jsonl", keep)

    def publish(self, job: str) -> None:
        """It was made there."""

    def settle(self, job: str) -> None:
        """Tries leave nothing else."""

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        paths = {name: self.path / name for name in names}
        there = {name: path for name, path in paths.items() if path.is_file()}
        return {
            name: hashlib.sha256(read_bytes(path, ResultError)).hexdigest()
            for name, path in there.items()
        }

    def worker(self, job: str) -> Mapping[str, Any]:
        path = self.path / "sweep/jobs" / job / "worker.json"
        with suppress(ResultError):
            found = read_json(path, ResultError, 4096) if path.is_file() else {}
            return found if isinstance(found, dict) and "host" in found else {}
        return {}


class StoreHome:
    """An object store."""

    def __init__(self, url: str) -> None:
        self.where = url
        self.store = Store(url)
        self.lease = Lease(Store(url, stores.LEASE_PATIENCE))

    @contextmanager
    def lead(self) -> Iterator[None]:
        require_conditions(Store(self.where, stores.FIRST_PATIENCE))
        self.lease = Lease(Store(self.where, stores.LEASE_PATIENCE))
        self.lease.take()
        try:
            yield
        finally:
            self.lease.release()

    def is_led(self) -> bool:
        """By this machine's clock, which should be near the store's."""
        found = self.store.read(KEY)
        if found is None or has_ended(whole(found[0], f"{self.where}/{KEY}")):
            return False
        seen = self.store.head(KEY)
        return seen is not None and time.time() - seen["last_modified"].timestamp() < 2 * SILENCE

    def holds(self, name: str) -> bool:
        return bool(self.store.names(f"{name}/"))

    def read(self, name: str) -> bytes | None:
        found = self.store.read(name)
        return None if found is None else found[0]

    def write(self, name: str, content: bytes) -> None:
        self.lease.check()
        self.store.write(name, content)

    def events(self) -> bytes:
        names = sorted(self.store.names(f"{EVENTS}/"))
        return b"".join(filter(None, at_once(self.read, names)))

    def log(self, keep: int) -> Log:
        """``keep`` is all: the store's objects are whole."""
        return _Segments(self.write, self.lease.epoch)

    def publish(self, job: str) -> None:
        claim, _ = read_claim(self.store, job)
        if claim.get("state") != "done":
            raise StoreError(f"{self.where}: {job} ended, and its last try is not in the store")
        self.lease.check()
        files = dict(claim["files"])
        new = [name for name in files if is_product(name) and files[name] != name]
        results = [name for name in new if name.endswith("run.json")]
        # A result last: what it names is there then.
        for part in ([name for name in new if name not in results], results):
            at_once(lambda name: self.store.copy(files[name], name), part)
        self.store.remove(claim["removed"])

    def settle(self, job: str) -> None:
        home = f"sweep/jobs/{job}/"
        self.store.remove(n for n in self.store.names(home) if n.removeprefix(home).count("/"))

    def versions(self, names: Iterable[str]) -> dict[str, str]:
        listed = list(names)
        found = zip(listed, at_once(self.store.head, listed), strict=True)
        return {name: str(meta["e_tag"]) for name, meta in found if meta is not None}

    def worker(self, job: str) -> Mapping[str, Any]:
        return dict(read_claim(self.store, job)[0].get("by", {}))


class _Segments:
    """A log as objects that are replaced while they are small: ``sweep/events/EPOCH-N.jsonl``."""

    def __init__(self, write: Callable[[str, bytes], None], epoch: int) -> None:
        self._write, self._epoch, self._n = write, epoch, 0
        self._lines = b""

    def add(self, lines: bytes) -> None:
        self._lines += lines
        self._write(f"{EVENTS}/{self._epoch:06}-{self._n:06}.jsonl", self._lines)
        if len(self._lines) > _SEGMENT:
            self._n, self._lines = self._n + 1, b""

    def close(self) -> None:
        """Everything is kept already."""


def home_of(given: str | Path) -> Home:
    """A sweep's home, by a folder or an address. Asks the store nothing yet.

    Raises:
        OptionError: the address is wrong, or the package for it is missing.
    """
    if is_address(str(given)):
        return StoreHome(require_address(str(given)))
    return FolderHome(Path(given))


def require_answer(home: Home) -> None:
    """Look whether a store is there and lets us in, before anything else is done.

    Raises:
        StoreError: it does not.
    """
    if isinstance(home, StoreHome):
        Store(home.where, stores.FIRST_PATIENCE).names(f"{EVENTS}/")


def encoded(value: object) -> bytes:
    """JSON, as one writes it here."""
    return json.dumps(value).encode("ascii")
