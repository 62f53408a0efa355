"""Entries written anew as an entry is written today: in columns, with today's intervals, from their
own records: no model and no text is needed.
"""

from __future__ import annotations

from pathlib import Path

from unlearnbench.boards.entry import Board, EntryRun, anchor, compact, entry_json
from unlearnbench.boards.verify import sound_entries
from unlearnbench.boards.verify_anchors import references
from unlearnbench.errors import ResultError
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.metrics.membership import ReferenceScores
from unlearnbench.results import TaskResult
from unlearnbench.runs.entries import Entry
from unlearnbench.tasks.rows import task_result
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.util.files import write_whole, writing

_FIGURES = ("value", "stderr", "ci", "auc", "auc_stderr", "auc_ci")


def rewrite_board(board: Board) -> list[tuple[Path, int, int]]:
    """Write every entry that is not as it would be written today; those files, and their bytes
    before and after.

    Raises:
        OptionError: the board has not one retrained model.
        ResultError: an entry does not verify, and nothing was written; or a file cannot be.
    """
    entries = sound_entries(board)
    retrained, registry = anchor(board, entries, "retrained").loaded(), board.registry()
    specs = [registry.tasks[name] for name in board.rules.tasks]
    new = {
        board.entries / f"{entry.name}.json": entry_json(
            compact(
                entry.model_copy(
                    update={"runs": tuple(_renewed(part, specs, retrained) for part in entry.runs)}
                )
            )
        ).encode("ascii")
        for entry in entries
    }
    written = []
    for path, content in new.items():
        before = path.read_bytes()
        if content != before:
            with writing(path, ResultError, "make it writable, or free some space"):
                write_whole(path, content)
            written.append((path, len(before), len(content)))
    return written


def _renewed(part: EntryRun, specs: list[TaskSpec], retrained: Entry) -> EntryRun:
    known = part.run.tasks
    new = {
        spec.task: _result(spec, part, retrained)
        for spec in specs
        if known[spec.task].intervals is None
    }
    return part.model_copy(update={"run": part.run.model_copy(update={"tasks": known | new})})


def _result(spec: TaskSpec, part: EntryRun, retrained: Entry) -> TaskResult:
    """A task's result with every figure that its records give."""
    stated, records, seed = (
        part.run.tasks[spec.task],
        part.samples[spec.task],
        part.run.settings.seed,
    )
    fresh = task_result(spec, records, stated.records_sha256, seed)
    new = {name: getattr(fresh, name) for name in _FIGURES} | {"intervals": "bounded"}
    if stated.auc_reference is not None:
        exact = ReferenceScores(stated.auc_reference.auc)
        zero = next(references(spec, stated.auc_reference, retrained), None)
        leak = spec.against(records, zero or exact, seed)
        if zero is None:  # the reference's own records are not here
            leak = Estimate(leak.value)
        new |= {"value": leak.value, "stderr": leak.stderr, "ci": leak.ci}
    return stated.model_copy(update=new)
