"""One writer a run folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.errors import ResultError, one_line
from unlearnbench.util.files import is_full, writing

LOCK_FILES = (".lock", ".holder")

log = logging.getLogger("unlearnbench")


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` where it is not there, and hold its lock. Never waits.

    The lock is the kernel's (flock), on the empty file ``.lock``: a dead process holds none. The
    file stays, since removing it would let two in. ``.holder`` says who holds it, for messages.

    Raises:
        ResultError: another process holds it, or this file system has no locks.
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
        raise ResultError(
            f"{folder} is being written by {_read(holder) or 'another process'}; wait for it to "
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
        last, host = _read(holder), one_line(platform.node(), 80)
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


def _read(holder: Path) -> str | None:
    """``process PID on host HOST``, where the file says so. Another user may have written it."""
    try:
        found = json.loads(holder.read_bytes())
        return f"process {int(found['pid'])} on host {one_line(found['host'], 80)}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
