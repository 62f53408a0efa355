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
    EvaluationError,
    InUseError,
    JournalError,
    MemoryShortError,
    OptionError,
    ResultError,
    UnlearnbenchError,
    one_line,
)
from unlearnbench.results import FULL
from unlearnbench.runs.fingerprint import source_sha256
from unlearnbench.sweep.graph import Job, Plan, order_text
from unlearnbench.sweep.record import state_folder
from unlearnbench.util.files import LOCK_FILES, lock_folder, read_json, write_whole, writing
from unlearnbench.util.process import plain_errors, quiet_transformers

_TOKEN = "token"  # noqa: S105 - a file
_LOCK_PATIENCE = 60.0
"""Seconds that a job waits for a worker that is believed dead to let go of it."""
# One that may end otherwise elsewhere or later.
_AGAIN = (MemoryShortError, InUseError)
_proven: set[str] = set()
log = logging.getLogger("unlearnbench")


def surroundings(plan: Plan) -> dict[str, Any]:
    """What every order says beside its job: where, and by what a worker knows that its storage is
    the sweep's and its package the same. Only under the sweep's lock.
    """
    token = secrets.token_hex(16)
    path = state_folder(plan.output) / _TOKEN
    with writing(path):
        write_whole(path, token.encode("ascii"))
    return {
        "output": str(plan.output),
        "folder": str(Path.cwd()),
        "token": token,
        "source": source_sha256(),
        "data": os.environ.get("UNLEARNBENCH_DATA"),
    }


def make_order(job: Job, around: Mapping[str, Any], attempt: int) -> str:
    """The order of one try of a job, as it travels."""
    told = {"id": job.id, "attempt": attempt, "cpus": job.demand.cpus, "around": dict(around)}
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
            "again": isinstance(error, (*_AGAIN, MemoryError)),
        }
        with suppress(OSError), _log_file(order).open("a", encoding="utf-8") as file:
            file.write(traceback.format_exc())
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
    with _job_folder(order), _logged(order):
        return _KINDS[order["kind"]](order, Path(around["output"]))


def _prove_storage(output: Path, token: str) -> None:
    """Show that this process sees the sweep's own folder, and that locks reach it.

    Raises:
        OptionError: it does not.
    """
    if token in _proven:
        return
    folder, host = state_folder(output), one_line(platform.node(), 80)
    try:
        same = (folder / _TOKEN).read_text(encoding="ascii") == token
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


def job_folder(output: Path, id: str) -> Path:
    """Where a job has its lock, its log, and while it runs who runs it."""
    return state_folder(output) / "jobs" / id


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
    finally:
        handler.close()
        log.handlers, log.propagate = before[:2]
        log.setLevel(before[2])


def runs_of(output: Path, name: str) -> Path:
    """The folder that a checkpoint's run folders are below."""
    return output / "runs" / name


def _evaluate(order: Mapping[str, Any], output: Path) -> dict[str, Any]:
    from unlearnbench.evaluation.evaluate import evaluate
    from unlearnbench.evaluation.options import Options
    from unlearnbench.runs.folder import run_path

    home, reference = runs_of(output, order["name"]), None
    if order["reference"] is not None:
        reference = _full_run(output, order["reference"])
    own = {"output": home, "reference": reference}
    asked = Options.of({**order["options"], **own})
    if asked.threads is None:
        asked = asked.updated({"threads": max(1, int(order["cpus"]))})
    # What an earlier release or another machine left half done is of no use here.
    ask = (order["model"], order["tasks"], order["conditions"], asked)
    try:
        try:
            results = evaluate(*ask)
        except JournalError as error:
            log.warning("%s: begun anew", error)
            _drop_journals(home)
            results = evaluate(*ask)
    except EvaluationError as error:
        again = any(isinstance(failure.error, _AGAIN) for failure in error.failures)
        lines = [f"{failure.where}: {failure.message}" for failure in error.failures]
        return {"error": one_line("; ".join(lines), 600), "again": again}
    folders = [run_path(home, r.checkpoint, r.condition.name) for r in results]
    made = [str((folder / "run.json").relative_to(output)) for folder in folders]
    samples = sum(task.n for result in results for task in result.tasks.values())
    return {"made": made, "samples": samples}


def _drop_journals(home: Path) -> None:
    for path in home.glob("*/*/partial/*"):
        path.unlink(missing_ok=True)


def _full_run(output: Path, name: str) -> Path:
    """The run of a checkpoint in full precision.

    Raises:
        ResultError: there is none, or there are several.
    """
    found = sorted(runs_of(output, name).glob(f"*/{FULL}/run.json"))
    if len(found) != 1:
        where = runs_of(output, name)
        raise ResultError(
            f"{where} holds {len(found)} runs in full precision and should hold one: "
            f"{'the checkpoint was changed; remove the folder' if found else 'evaluate it first'}"
        )
    return found[0].parent


def _train(order: Mapping[str, Any], output: Path) -> dict[str, Any]:
    from functools import partial

    from unlearnbench.checkpoints.origin import FILE
    from unlearnbench.evaluation.evaluate import score_checkpoint
    from unlearnbench.training.job import Job as Training
    from unlearnbench.training.job import finetune, unlearn
    from unlearnbench.training.options import CorpusOptions, TrainOptions
    from unlearnbench.training.output import is_trained

    out, method = Path(order["out"]), order["method"]
    given = order["options"]
    corpus = CorpusOptions.of({k: v for k, v in given.items() if k in CorpusOptions.model_fields})
    options = TrainOptions.of({k: v for k, v in given.items() if k in TrainOptions.model_fields})
    if not is_trained(out):
        job = Training(
            model=order["model"],
            out=out,
            forget=tuple(order["data"] or order["forget"]),
            retain=tuple(order["retain"]),
            auxiliary=tuple(order["auxiliary"]),
            unseen=tuple(order["unseen"]),
            alternative=order["alternative"],
            spans=order["spans"],
            options=options,
            corpus=corpus,
            score=partial(score_checkpoint, corpus),
            resume=(out / ".training").is_dir(),
        )
        if method == "finetune":
            finetune(job)
        else:
            unlearn(job, method, order["knobs"])
    return {"made": [str((out / FILE).relative_to(output))]}


def complete_runs(output: Path, name: str) -> list[Path]:
    """A checkpoint's run folders that have all the tasks of its run in full precision, that first;
    none where that is missing.
    """
    tasks = {}
    for path in sorted(runs_of(output, name).glob("*/*/run.json")):
        content = read_json(path, ResultError)
        held = content.get("tasks") if isinstance(content, dict) else None
        tasks[path.parent] = set(held) if isinstance(held, dict) else set()
    full = [folder for folder in tasks if folder.name == FULL]
    if len(full) != 1:
        return []
    others = [f for f in tasks if f not in full and tasks[f] >= tasks[full[0]]]
    return [*full, *others]


def _compare(order: Mapping[str, Any], output: Path) -> dict[str, Any]:
    from unlearnbench.recovery.compare import compare, open_comparison
    from unlearnbench.recovery.reports import rows_json
    from unlearnbench.util.files import write_text

    runs = [run for name in order["entries"] for run in complete_runs(output, name)]
    if not runs:
        raise ResultError("no checkpoint beside the references is complete")
    target, retrained = (runs_of(output, order[role]) for role in ("target", "retrained"))
    rows = compare(open_comparison(runs, target, retrained, order["utility_floor"]))
    write_text(output / "recovery.json", rows_json(rows))
    return {"made": ["recovery.json"]}


def _board(order: Mapping[str, Any], output: Path) -> dict[str, Any]:
    from unlearnbench.boards import add_entry, read_board
    from unlearnbench.boards.entry import Submission
    from unlearnbench.boards.tables import build_board
    from unlearnbench.util.files import write_text

    home = output / "board"
    # JSON is YAML too.
    rules = json.dumps(order["rules"], indent=2, ensure_ascii=False) + "\n"
    write_text(home / "board.yaml", rules)
    board = read_board(home)
    roles = {order["target"]: "target", order["retrained"]: "retrained"}
    stale = {path.stem for path in board.entries.glob("*.json")}
    for name in (*roles, *order["entries"]):
        runs = complete_runs(output, name)
        if not runs:
            continue
        role = roles.get(name, "unlearned")
        submission = Submission(name, role, "", order["rules"]["publish_texts"])  # type: ignore[arg-type]
        add_entry(board, runs, submission)
        stale.discard(name)
    for name in stale:
        (board.entries / f"{name}.json").unlink()
    build_board(board)
    return {"made": ["board/index.html", "board/board.csv"]}


_KINDS = {"evaluate": _evaluate, "train": _train, "compare": _compare, "board": _board}
