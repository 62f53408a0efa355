"""Who leads a sweep whose record is in an object store: one process, until it ends or falls silent.

``sweep/leader.json`` is replaced by its holder every few seconds. Whoever wants it looks whether it
changes, by a clock of its own: no two machines have to agree on the time.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import secrets
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from unlearnbench.errors import InUseError, StoreError, UnlearnbenchError, one_line
from unlearnbench.sweep import store as stores
from unlearnbench.sweep.store import Store, Tag, TakenError

KEY = "sweep/leader.json"
EVENTS = "sweep/events"
BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 45.0
"""Seconds without one after which another process may take over. More than a request may take."""
log = logging.getLogger("unlearnbench")


def whole(content: bytes, where: str, **kinds: type) -> dict[str, Any]:
    """A JSON object that this package wrote, which has these kinds of values. Raises StoreError
    where it is none.
    """
    try:
        found = json.loads(content)
        if isinstance(found, dict) and all(isinstance(found.get(k), kinds[k]) for k in kinds):
            return found
    except (ValueError, RecursionError):
        pass
    raise StoreError(f"{where} is damaged; remove it")


def here() -> dict[str, Any]:
    """Which process this is. ``machine`` tells the one that its process number counts on."""
    machine = ""
    with suppress(OSError):  # not everywhere; then nobody takes over before it has been silent
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        machine = f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    started = psutil.Process().create_time()
    return {"host": platform.node(), "pid": os.getpid(), "machine": machine, "began": started}


def who(found: Mapping[str, Any]) -> str:
    """``process PID on HOST``, as an object of a store says it."""
    return f"process {one_line(found.get('pid'), 12)} on {one_line(found.get('host'), 60)}"


def has_ended(found: Mapping[str, Any]) -> bool:
    """Whether it let go, or was a process of this machine that is no more."""
    if found.get("released"):
        return True
    if not found.get("machine") or found["machine"] != here()["machine"]:
        return False
    try:
        return bool(psutil.Process(int(found["pid"])).create_time() != found.get("began"))
    except psutil.NoSuchProcess:
        return True
    except (psutil.Error, TypeError, ValueError, KeyError, OverflowError):
        return False


class Lease:
    """A sweep's leadership, from ``take`` to ``release``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._facts = {**here(), "nonce": secrets.token_hex(8)}
        self._tag: Tag = {}
        self._beats = 0
        self._lost, self._said = "", 0.0
        self._ends = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="lease", daemon=True)
        self.epoch = 0
        """How many have led before, and this one; who leads later has more."""

    def take(self) -> None:
        """Become the leader, and stay it in the background.

        Raises:
            InUseError: another process is. StoreError.
        """
        found = self._store.read(KEY)
        if (
            found is None
        ):  # or it was removed: what was written since the first counts on its number
            names = self._store.names(f"{EVENTS}/")
            numbers = [re.match(rf"{EVENTS}/([0-9]+)-", name) for name in names]
            self.epoch = 1 + max((int(number[1]) for number in numbers if number), default=0)
            seen = None
        else:
            holder, seen = whole(found[0], f"{self._store.url}/{KEY}", epoch=int), found[1]
            self._await_silence(holder, seen)
            self.epoch = holder["epoch"] + 1
        try:
            self._tag = self._store.replace(KEY, self._content(), seen)
        except TakenError:
            raise self._in_use() from None
        self._said = time.monotonic()
        self._thread.start()

    def _await_silence(self, holder: Mapping[str, Any], seen: Tag) -> None:
        ends = time.monotonic() + SILENCE
        while not has_ended(holder):
            if time.monotonic() > ends:
                log.warning(
                    "%s was led by %s, which has been silent for %d s: taken over",
                    self._store.url,
                    who(holder),
                    SILENCE,
                )
                return
            time.sleep(min(1.0, BEAT))
            now = self._store.read(KEY)
            if now is None or now[1] != seen:
                raise self._in_use()

    def _in_use(self) -> InUseError:
        found = self._store.read(KEY)
        holder = whole(found[0], KEY) if found else {}
        by = who(holder) if holder else "another process"
        return InUseError(
            f"{self._store.url} is being written by {by}; wait for it to end, or use another output"
        )

    def _content(self, released: bool = False) -> bytes:
        self._beats += 1
        told = {**self._facts, "epoch": self.epoch, "beat": self._beats, "released": released}
        return json.dumps(told).encode("ascii")

    def _live(self) -> None:
        while not self._ends.wait(BEAT):
            with suppress(StoreError):  # the next beat tries again, and who writes will say it
                self._beat()

    def _beat(self, released: bool = False) -> None:
        with self._lock:
            if self._lost:
                return
            try:
                self._replace(released)
            except TakenError:
                self._lost = str(self._in_use())
            self._said = time.monotonic()

    def _replace(self, released: bool) -> None:
        try:
            self._tag = self._store.replace(KEY, self._content(released), self._tag)
        except TakenError:
            found = self._store.read(KEY)
            if found is None or whole(found[0], KEY).get("nonce") != self._facts["nonce"]:
                raise
            # An earlier sign of ours, which had failed as far as we knew, came late.
            self._tag = self._store.replace(KEY, self._content(released), found[1])

    def check(self) -> None:
        """Raise InUseError where another process has taken over. Who was stopped for a while asks
        the store before it writes.
        """
        ends = time.monotonic() + stores.PATIENCE
        while time.monotonic() - self._said > SILENCE / 2:
            try:
                self._beat()
            except StoreError:
                if time.monotonic() > ends:
                    raise
                time.sleep(min(1.0, BEAT))
            if self._lost:
                break
        if self._lost:
            raise InUseError(f"this sweep was silent for too long: {self._lost}")

    def release(self) -> None:
        """Let the next one in at once; where the store does not answer, it has to wait."""
        self._ends.set()
        if self._thread.is_alive():
            self._thread.join()
        if not self._store.down:
            with suppress(UnlearnbenchError):
                self._beat(released=True)
