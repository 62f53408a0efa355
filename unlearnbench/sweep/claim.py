"""A job in an object store: the try that may write its results, and what it has uploaded.

``sweep/jobs/JOB/claim.json`` names the newest try, and is replaced only as it was seen: by a newer
try, or by that one when it is done. So a worker that was believed dead cannot count.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unlearnbench.errors import InUseError, StoreError, one_line
from unlearnbench.sweep.lease import here, who, whole
from unlearnbench.sweep.store import Store, Tag, TakenError, at_once
from unlearnbench.util.files import LOCK_FILES

UPLOAD_EVERY = 20.0
"""Seconds between two uploads of what a job has done so far, or ten times what one takes."""
_READ_WHOLE = 2**24
_PLACES = ("runs/", "models/", "board/", "recovery.json", "sweep/jobs/")
log = logging.getLogger("unlearnbench")


def read_claim(store: Store, job: str) -> tuple[dict[str, Any], Tag | None]:
    """A job's claim and its version; none where nobody has had the job.

    Raises:
        StoreError: it is damaged, or names files where no result is.
    """
    found = store.read(name := f"sweep/jobs/{job}/claim.json")
    if found is None:
        return {}, None
    where = f"{store.url}/{name}"
    told = whole(found[0], where, epoch=int, attempt=int, state=str, by=dict)
    if told["state"] == "done":
        told = whole(found[0], where, files=dict, removed=list, report=dict)
        for each in (*told["files"], *told["files"].values(), *told["removed"]):
            require_place(where, each)
    return told, found[1]


def require_place(where: str, name: object) -> None:
    """Refuse what is no name of something that a job makes: what a store holds is not trusted.

    Raises:
        StoreError: it leads out of the folder, or to a place of something else.
    """
    told = name if isinstance(name, str) and "\0" not in name else ""
    if not told.startswith(_PLACES) or {"", ".", ".."} & set(told.split("/")):
        raise StoreError(f"{where}: {one_line(name, 200)} leads elsewhere; refused")


def is_product(name: str) -> bool:
    """Whether a file that a job has made is more than a way to it."""
    return not is_journal(name) and name.split("/")[2:3] != [".training"]


def is_journal(name: str) -> bool:
    """Whether it is below ``runs/NAME/MODEL/CONDITION/partial``."""
    return name.split("/")[4:5] == ["partial"]


class JobClaim:
    """One try's right to a job."""

    def __init__(self, store: Store, order: Mapping[str, Any]) -> None:
        self._store, self._around, self._job = store, order["around"], order["id"]
        self.home = f"sweep/jobs/{self._job}"
        self._rank = (int(self._around["epoch"]), int(order["attempt"]))
        self._facts = {
            "epoch": self._rank[0],
            "attempt": self._rank[1],
            "key": self._around["key"],
            "by": {**here(), "nonce": secrets.token_hex(8)},
        }
        self._tag: Tag = {}
        self.folder = f"{self.home}/{self._rank[0]}-{self._rank[1]}"
        """What this try uploads is below it."""

    def take(self) -> dict[str, Any] | None:
        """Get the job; its report where an earlier try had done the very same.

        Raises:
            InUseError: a newer try has it.
        """
        while True:
            found, seen = read_claim(self._store, self._job)
            if (found.get("epoch", 0), found.get("attempt", 0)) >= self._rank:
                raise self._in_use(found)
            told: dict[str, Any] = {**self._facts, "state": "running"}
            if kept := self._is_kept(found):
                told = {**self._facts, **{key: found[key] for key in ("files", "removed")}}
                told |= {"state": "done", "report": found["report"]}
            try:
                self._tag = self._store.replace(f"{self.home}/claim.json", _json(told), seen)
            except TakenError:
                continue
            return dict(found["report"]) if kept else None

    def _is_kept(self, found: Mapping[str, Any]) -> bool:
        if found.get("state") != "done" or found.get("key") != self._facts["key"]:
            return False
        there = self._store.names(f"{self.home}/")
        others = set(found["files"].values()) - there.keys()  # in their place already
        return None not in at_once(self._store.head, others)

    def _in_use(self, found: Mapping[str, Any]) -> InUseError:
        by = who(found.get("by", {}))
        return InUseError(
            f"{self._store.url}/{self.home} was given to {by}; what this try made does not count"
        )

    def finish(
        self, report: Mapping[str, Any], files: Mapping[str, str], removed: Sequence[str]
    ) -> None:
        """Have this try count: its ``files``, by name the objects that hold them, and what is
        to go.

        Raises:
            InUseError: a newer try has the job.
        """
        told = {**self._facts, "state": "done", "report": dict(report), "files": dict(files)}
        try:
            content = _json({**told, "removed": list(removed)})
            self._tag = self._store.replace(f"{self.home}/claim.json", content, self._tag)
        except TakenError:
            raise self._in_use(read_claim(self._store, self._job)[0]) from None

    def earlier(self) -> dict[str, str]:
        """What the last try before this one had uploaded."""
        found = {}
        for name in self._store.names(f"{self.home}/"):
            rest = name.removeprefix(f"{self.home}/")
            if number := re.fullmatch(r"([0-9]{1,9})-([0-9]{1,9})/state\.json", rest):
                found[int(number[1]), int(number[2])] = name
        for rank in sorted(found, reverse=True):
            if read := self._store.read(found[rank]):
                return whole(read[0], f"{self._store.url}/{found[rank]}")
        return {}


class Uploads:
    """Some files of this folder, as they are from time to time, in a store. An upload counts as a
    whole, once its list is there.
    """

    def __init__(self, store: Store, folder: str, roots: Sequence[Path], steady: bool) -> None:
        """folder: below which they are uploaded. steady: files that change together, and count only
        where none did meanwhile; else they are a run's, whose journals grow.
        """
        self._store, self._folder, self._roots, self._steady = store, folder, roots, steady
        self._known: dict[str, tuple[tuple[int, int], str]] = {}
        self._listed: dict[str, str] = {}
        self._n = 0
        self._lock = threading.Lock()

    def fetch(self, files: Mapping[str, str]) -> None:
        """Have files here, by name and by the object that holds each. They are not uploaded again
        unless they change.
        """

        def one(name: str) -> None:
            for each in (name, files[name]):
                require_place(self._store.url, each)
            self._store.fetch(files[name], Path(name))
            self._known[name] = (_stat(Path(name)), files[name])

        at_once(one, files)

    def take(self, last: bool = False) -> dict[str, str]:
        """Upload what is new. Returns all files, by name the objects that hold them; ``last``: no
        file changes any more.
        """
        with self._lock:
            before = self._stats()
            # A journal goes when its task is in run.json, whose records are there before it is.
            picks = (is_journal, _is_result, _is_other)
            found: dict[str, str] = {}
            for pick in picks:
                found |= dict(filter(None, at_once(self._put, filter(pick, self._stats()))))
            if not last and self._steady and self._stats() != before:
                return self._listed
            if found != self._listed:
                self._n += 1
                self._store.write(f"{self._folder}/state.json", _json(found))
                old = set(self._listed.values()) - set(found.values())
                self._store.remove(key for key in old if key.startswith(f"{self._folder}/"))
                self._listed = found
            return found

    def _stats(self) -> dict[str, tuple[int, int]]:
        found = {}
        for root in self._roots:
            for path in [root] if root.is_file() else sorted(root.rglob("*")):
                with suppress(FileNotFoundError):
                    ours = path.name in LOCK_FILES or path.name.startswith(".writing-")
                    if path.is_file() and not ours:
                        found[path.as_posix()] = _stat(path)
        return found

    def _put(self, name: str) -> tuple[str, str] | None:
        path = Path(name)
        try:
            stat = _stat(path)
            known = self._known.get(name)
            if known is None or known[0] != stat:
                key = f"{self._folder}/{self._n}/{name}"
                small = stat[0] < _READ_WHOLE
                self._store.write(key, path.read_bytes() if small else path)
                self._known[name] = known = (stat, key)
        except FileNotFoundError:
            return None
        return name, known[1]

    @contextmanager
    def going_on(self, beside: Callable[[], None]) -> Iterator[None]:
        """Upload now and then, and do ``beside`` with it. A store that does not answer is asked
        again the next time.
        """
        ends = threading.Event()

        def go_on() -> None:
            pause = UPLOAD_EVERY
            while not ends.wait(pause):
                began = time.monotonic()
                try:
                    self.take()
                    beside()
                except (StoreError, OSError) as error:
                    log.warning("not uploaded now: %s", error)
                pause = max(UPLOAD_EVERY, 10 * (time.monotonic() - began))

        thread = threading.Thread(target=go_on, name="uploads", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()


def products(store: Store, prefix: str) -> dict[str, str]:
    """Results below ``prefix``, as ``Uploads.fetch`` takes them."""
    return {name: name for name in store.names(prefix) if is_product(name)}


def _json(value: object) -> bytes:
    return json.dumps(value).encode("ascii")


def _stat(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


def _is_other(name: str) -> bool:
    return not (is_journal(name) or _is_result(name))


def _is_result(name: str) -> bool:
    return name.endswith("/run.json")
