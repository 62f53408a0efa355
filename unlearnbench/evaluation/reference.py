"""Where PrivLeak's zero comes from: a run of the retrained model, or a task's stated reference.

Never assumed: without either there is an AUC and no PrivLeak.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import MetricError, OptionError, ResultError
from unlearnbench.results import AucReference, Checkpoint, RunResult
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.samples import TaskSamples
from unlearnbench.tasks.spec import TaskReference

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class RetrainedRun:
    """A run of the retrained model, read and checked as a file."""

    folder: RunFolder
    result: RunResult


def open_reference(path: Path) -> RetrainedRun:
    """Read the retrained model's run.

    Raises:
        OptionError: there is no run in the folder; names the runs below it.
        ResultError: its ``run.json`` is damaged.
    """
    if not (path / "run.json").is_file():
        below = sorted(p.parent.name for p in path.glob("*/run.json")) if path.is_dir() else []
        hint = f"; it holds {', '.join(below)}, take one of those" if below else ""
        raise OptionError(
            f"--reference {path}: no run.json there{hint}. Give the run folder of the retrained "
            "model, or the word 'stated'"
        )
    return RetrainedRun(RunFolder(path), read_run(path))


def run_reference(task: TaskSamples, run: RetrainedRun, checkpoint: Checkpoint) -> TaskReference:
    """The reference from a run of the retrained model, once it is shown to be comparable.

    Raises:
        OptionError: the run lacks the task, or differs in version, data, texts or tokenizer.
        ResultError: its records are damaged.
    """
    spec, where = task.spec, f"--reference {run.folder.path}"
    found = run.result.tasks.get(spec.task)
    if found is None:
        raise OptionError(f"{where} has no {spec.task}; evaluate the retrained model on it first")
    if run.result.checkpoint.weights_sha256 == checkpoint.weights_sha256:
        log.warning(
            "%s is a run of this very checkpoint, so PrivLeak only shows what quantizing changed; "
            "the reference should be the retrained model",
            where,
        )
    _require_same(where, "task version", found.version, spec.version)
    _require_same(where, "task's definition", found.task_sha256, spec.definition_sha256)
    theirs = {part.split: part.sha256 for part in found.data}
    for split, rows in task.splits.items():
        _require_same(where, f"data of split {split!r}", theirs.get(split), rows.sha256)
    tokenizer = run.result.checkpoint.tokenizer_sha256
    _require_same(where, "tokenizer", tokenizer, checkpoint.tokenizer_sha256)
    records = run.folder.read_records(spec.task, found.records_sha256)
    for split in spec.asked_splits:
        ids = tuple(r.id for r in records if r.id.rpartition("/")[0] == split)
        _require_same(where, f"number of {split!r} texts", len(ids), len(task.ids(split)))
        _require_same(where, f"texts of split {split!r}", ids, task.ids(split))
    try:
        scores = spec.reference_scores(records)
    except MetricError as error:
        raise ResultError(f"{run.folder.samples_file(spec.task)}: {error}") from None
    if scores.auc <= 0:
        raise MetricError(
            f"{where}: its AUC is 0, so PrivLeak is not defined; a model that tells all forget "
            "texts apart was trained on them"
        )
    recorded = AucReference(
        auc=scores.auc,
        kind="run",
        source=f"{run.result.checkpoint.path} at {run.result.precision.name}",
        weights_sha256=run.result.checkpoint.weights_sha256,
    )
    return TaskReference(scores, recorded)


def _require_same(where: str, what: str, theirs: object, ours: object) -> None:
    if theirs != ours:
        shown = (
            "" if isinstance(ours, tuple) else f": {str(theirs)[:12]} there, {str(ours)[:12]} here"
        )
        raise OptionError(f"{where} is another measurement: the {what} differs{shown}")
