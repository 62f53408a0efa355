"""The kinds of job: train, evaluate, compare, board. Each takes an order and the sweep's folder,
and returns what it made, or what failed, for the report.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from unlearnbench.errors import (
    EvaluationError,
    InUseError,
    JournalError,
    MemoryShortError,
    ResultError,
    StoreError,
    one_line,
)
from unlearnbench.results import FULL
from unlearnbench.sweep.graph import order_text
from unlearnbench.sweep.record import given_files, job_folder
from unlearnbench.util.files import (
    content_sha256,
    file_sha256,
    read_bytes,
    read_json,
    write_whole,
    writing,
)

Kind: TypeAlias = Callable[[Mapping[str, Any], Path], dict[str, Any]]

AGAIN = (MemoryShortError, InUseError, StoreError)
"""Errors that may end otherwise elsewhere, or later."""
log = logging.getLogger("unlearnbench")


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
    known = [path for name in order["drafts_from"] for path in _full_runs(output, name)]
    own = {"output": home, "reference": reference, "drafts_from": known}
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
        again = any(isinstance(failure.error, AGAIN) for failure in error.failures)
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
    found = _full_runs(output, name)
    if len(found) != 1:
        where = runs_of(output, name)
        raise ResultError(
            f"{where} holds {len(found)} runs in full precision and should hold one: "
            f"{'the checkpoint was changed; remove the folder' if found else 'evaluate it first'}"
        )
    return found[0]


def _full_runs(output: Path, name: str) -> list[Path]:
    return sorted(p.parent for p in runs_of(output, name).glob(f"*/{FULL}/run.json"))


def _train(order: Mapping[str, Any], output: Path) -> dict[str, Any]:
    from functools import partial

    from unlearnbench.checkpoints.origin import FILE
    from unlearnbench.evaluation.score import score_checkpoint
    from unlearnbench.training.job import Job as Training
    from unlearnbench.training.job import finetune, unlearn
    from unlearnbench.training.options import CorpusOptions, TrainOptions
    from unlearnbench.training.output import is_trained

    out, method = Path(order["out"]), order["method"]
    given = order["options"]
    corpus = CorpusOptions.of({k: v for k, v in given.items() if k in CorpusOptions.model_fields})
    options = TrainOptions.of({k: v for k, v in given.items() if k in TrainOptions.model_fields})
    asked = _asked(order)
    known = job_folder(output, order["id"]) / "asked"
    if is_trained(out):
        if not known.is_file() or read_bytes(known, ResultError, 100).decode() != asked:
            raise ResultError(
                f"{out} was trained by another order or on other files than now; remove it, or "
                "give this recipe another name"
            )
    else:
        with writing(known):
            write_whole(known, asked.encode("ascii"))
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


def _asked(order: Mapping[str, Any]) -> str:
    """Of all that decides what a training makes: its order, and the files that it is given."""
    told = {key: order[key] for key in order.keys() - {"around", "attempt", "cpus", "id"}}
    files = [[path, file_sha256(Path(path), ResultError)] for path in given_files(order)]
    return content_sha256([order_text(told), files])


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


KINDS: Mapping[str, Kind] = {
    "evaluate": _evaluate,
    "train": _train,
    "compare": _compare,
    "board": _board,
}
