"""Where PrivLeak's zero comes from: a run of the retrained model, or a task's stated reference.

Never assumed: without either there is an AUC and no PrivLeak.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unlearnbench.errors import MetricError, OptionError, ResultError
from unlearnbench.evaluation.answers import task_fingerprint
from unlearnbench.metrics.membership import LEAST_REFERENCE, privleak
from unlearnbench.results import AucReference, Checkpoint, RunResult, TaskResult
from unlearnbench.runs.fingerprint import Fingerprint, across_sha256, differences
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import TaskReference

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class RetrainedRun:
    """A run of the retrained model, read and checked as a file."""

    folder: RunFolder
    result: RunResult


def open_reference(asked: Path | str | None) -> RetrainedRun | Literal["stated"] | None:
    """What ``--reference`` names: the retrained model's run, read, or the word ``stated``.

    Raises:
        OptionError: there is no run in the folder; names the runs below it.
        ResultError: its ``run.json`` is damaged.
    """
    if asked is None or asked == "stated":
        return None if asked is None else "stated"
    path = Path(asked)
    if not (path / "run.json").is_file():
        below = sorted(p.parent.name for p in path.glob("*/run.json")) if path.is_dir() else []
        hint = f"; it holds {', '.join(below)}, take one of those" if below else ""
        raise OptionError(
            f"--reference {path}: no run.json there{hint}. Give the run folder of the retrained "
            "model, or the word 'stated'"
        )
    return RetrainedRun(RunFolder(path), read_run(path))


def find_references(
    tasks: Sequence[TaskSamples],
    asked: RetrainedRun | Literal["stated"],
    checkpoint: Checkpoint,
    config: Mapping[str, object],
) -> dict[str, TaskReference]:
    """The retrained model's scores on every task that is measured against them.

    Raises: as ``_run_reference``.
    """
    found: dict[str, TaskReference] = {}
    for task in tasks:
        if not task.spec.needs_reference:
            continue
        if asked == "stated":
            reference = task.spec.stated_reference(config)
        else:
            reference = _run_reference(task, asked, checkpoint)
        if reference.scores.auc < LEAST_REFERENCE:
            log.warning(
                "%s: the reference AUC is %.3g; so near 0 PrivLeak explodes, read the AUC instead",
                task.spec.task,
                reference.scores.auc,
            )
        found[task.spec.task] = reference
    return found


def _run_reference(task: TaskSamples, run: RetrainedRun, checkpoint: Checkpoint) -> TaskReference:
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
    there = Fingerprint.of_task(found.version, found.task_sha256, found.data)
    theirs = run.result.checkpoint
    there |= Fingerprint.of({"tokenizer": across_sha256(theirs, checkpoint)})
    here = Fingerprint.of({"tokenizer": across_sha256(checkpoint, theirs)})
    here = task_fingerprint(task) | here
    _require_same(where, there, here)
    records = run.folder.read_records(spec.task, found.records_sha256)
    for split in spec.asked_splits:
        ids = [r.id for r in records if r.id.rpartition("/")[0] == split]
        there = Fingerprint.of_samples(f"{split!r} texts", ids)
        _require_same(where, there, Fingerprint.of_samples(f"{split!r} texts", task.ids(split)))
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
        source=f"{run.result.checkpoint.path} at {run.result.condition.name}",
        weights_sha256=run.result.checkpoint.weights_sha256,
    )
    return TaskReference(scores, recorded)


def _require_same(where: str, there: Fingerprint, here: Fingerprint) -> None:
    if there != here:
        raise OptionError(f"{where} is another measurement: {differences(there, here)[0]}")


def keep_reference(
    folder: RunFolder, name: str, fresh: TaskResult, earlier: TaskResult
) -> TaskResult:
    """``fresh`` with the value that ``earlier`` has against a reference which is not at hand now,
    once it is held against the records and the stored reference.

    Raises:
        ResultError: they give another value.
    """
    reference, stored = earlier.auc_reference, earlier.value
    if fresh.auc is None or reference is None or stored is None:
        raise ResultError(f"{folder.run_file}: {name} has a reference and no value")
    expected = privleak(fresh.auc, reference.auc)
    if abs(expected - stored) > 1e-6 * max(1.0, abs(expected)):
        raise ResultError(
            f"{folder.run_file}: {name} states PrivLeak {stored:g}, and its records give "
            f"{expected:g}; remove {folder.path} to evaluate again"
        )
    kept = ("value", "stderr", "ci", "auc_reference")
    return fresh.model_copy(update={key: getattr(earlier, key) for key in kept})
