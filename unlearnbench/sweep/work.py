"""What a worker does: one job, from an order in JSON to a report in JSON. Nothing else travels.

Everything that a job makes is on the storage that all nodes see; so a job that was interrupted goes
on wherever it is tried again.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import platform
import secrets
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearnbench.errors import (
    InUseError,
    OptionError,
    UnlearnbenchError,
    one_line,
)
from unlearnbench.runs.fingerprint import source_sha256
from unlearnbench.sweep.away import TOKEN, perform_away, store_settings
from unlearnbench.sweep.graph import Plan, SweepJob, order_text
from unlearnbench.sweep.home import StoreHome
from unlearnbench.sweep.kinds import AGAIN, KINDS
from unlearnbench.sweep.record import job_folder, state_folder
from unlearnbench.util.files import LOCK_FILES, lock_folder, write_whole, writing
from unlearnbench.util.process import plain_errors, quiet_transformers

_LOCK_PATIENCE = 60.0
"""Seconds that a job waits for a worker that is believed dead to let go of it."""
_proven: set[str] = set()
log = logging.getLogger("unlearnbench")


def surroundings(plan: Plan) -> dict[str, Any]:
    """What every order says beside its job: where, and by what a worker knows that its storage is
    the sweep's and its package the same. Only under the sweep's lock.
    """
    token, home = secrets.token_hex(16), plan.home
    home.write(TOKEN, token.encode("ascii"))
    told = {"token": token, "source": source_sha256(), "data": os.environ.get("UNLEARNBENCH_DATA")}
    if isinstance(home, StoreHome):
        if told["data"]:  # a worker is in another folder
            told["data"] = str(Path(told["data"]).absolute())
        return {**told, **store_settings(), "store": home.where, "epoch": home.lease.epoch}
    return {**told, "output": home.where, "folder": str(Path.cwd())}


def make_order(job: SweepJob, around: Mapping[str, Any], attempt: int, key: str = "") -> str:
    """The order of one try of a job, as it travels. key: of all that decides what it makes."""
    told = {"id": job.id, "attempt": attempt, "cpus": job.demand.cpus}
    told["around"] = {**around, "key": key}
    return order_text({**job.order, **told})


def perform(text: str) -> str:
    """Do a job and report, whatever happens in it: JSON with ``error`` (empty where it is done),
    ``again``, ``made``, ``samples`` and ``seconds``.
    """
    order, started = json.loads(text), time.monotonic()
    report: dict[str, Any] = {"error": "", "again": False, "made": [], "samples": 0}
    try:
        if order["kind"] != "nothing":
            with plain_errors():
                report |= _perform(order)
    except Exception as error:
        shown = error if isinstance(error, UnlearnbenchError) else _named(error)
        report |= {
            "error": one_line(shown, 600),
            "again": isinstance(error, (*AGAIN, MemoryError)),
        }
    if order["kind"] != "nothing":
        gc.collect()  # before the next job takes its memory
    return json.dumps({**report, "seconds": round(time.monotonic() - started, 3)})


def _named(error: Exception) -> str:
    return f"internal error: {type(error).__name__}: {error}"


def _perform(order: Mapping[str, Any]) -> dict[str, Any]:
    around = order["around"]
    if around["source"] != source_sha256():
        raise OptionError(
            f"{platform.node()} has another unlearnbench than the sweep's; install it"
        )
    if "store" not in around:
        _prove_storage(Path(around["output"]), around["token"])
        try:
            os.chdir(around["folder"])
        except OSError:
            raise OptionError(f"{around['folder']} is not on {platform.node()}; share it") from None
    if around["data"] is not None:
        os.environ["UNLEARNBENCH_DATA"] = around["data"]
    quiet_transformers()
    from unlearnbench.util.process import set_threads

    set_threads(max(1, int(order["cpus"])))
    return perform_away(order, _do) if "store" in around else _do(order)


def _do(order: Mapping[str, Any]) -> dict[str, Any]:
    with _job_folder(order), _logged(order):
        return KINDS[order["kind"]](order, Path(order["around"]["output"]))


def _prove_storage(output: Path, token: str) -> None:
    """Show that this process sees the sweep's own folder, and that locks reach it.

    Raises:
        OptionError: it does not.
    """
    if token in _proven:
        return
    folder, host = state_folder(output), one_line(platform.node(), 80)
    try:
        same = (output / TOKEN).read_text(encoding="ascii") == token
    except (OSError, UnicodeError):
        same = False
    if not same:
        raise OptionError(f"{output} on {host} is not the sweep's; use a path that all nodes see")
    lock = FileLock(folder / LOCK_FILES[0])
    with suppress(Timeout):
        lock.acquire(timeout=0)
        lock.release()
        raise OptionError(
            f"{output} has no locks that reach {host}: two nodes could write one folder; use a "
            "file system with flock across nodes (docs/sweeps.md)"
        )
    _proven.add(token)


def _log_file(order: Mapping[str, Any]) -> Path:
    return job_folder(Path(order["around"]["output"]), order["id"]) / "log.txt"


@contextmanager
def _job_folder(order: Mapping[str, Any]) -> Iterator[None]:
    """Be the job's one worker. One whose node is cut off, and so counts as dead, is
    waited for.

    Raises:
        InUseError: it does not end.
    """
    folder, ends = _log_file(order).parent, time.monotonic() + _LOCK_PATIENCE
    who = {"host": platform.node(), "pid": os.getpid(), "attempt": order["attempt"]}
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(lock_folder(folder))
                break
            except InUseError:
                if time.monotonic() > ends:
                    raise
                time.sleep(0.5)
        held.callback((folder / "worker.json").unlink, missing_ok=True)
        with writing(folder):
            write_whole(folder / "worker.json", json.dumps(who).encode("ascii"))
        yield


@contextmanager
def _logged(order: Mapping[str, Any]) -> Iterator[None]:
    """Have our log lines in the job's file, and nowhere else."""
    handler = logging.FileHandler(_log_file(order), encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    before = log.handlers, log.propagate, log.level
    log.handlers, log.propagate = [handler], False
    log.setLevel(logging.INFO)
    try:
        log.info("try %s on %s, process %s", order["attempt"], platform.node(), os.getpid())
        yield
        log.info("done")
    except Exception:
        log.info(traceback.format_exc())
        raise
    finally:
        handler.close()
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])
