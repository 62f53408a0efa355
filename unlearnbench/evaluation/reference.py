"""Where PrivLeak's zero comes from: a run of the retrained model, or a task's stated reference.

Never assumed: without either there is an AUC and no PrivLeak.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import MetricError, OptionError, ResultError
from unlearnbench.metrics.intervals import auc
from unlearnbench.metrics.membership import ReferenceScores
from unlearnbench.results import AucReference, Checkpoint, LikelihoodRecord, RunResult
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.spec import LikelihoodTask, StatedReference

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Reference:
    """The retrained model's scores and what the result records of them."""

    scores: ReferenceScores
    recorded: AucReference


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


def stated_reference(spec: LikelihoodTask, config: Mapping[str, object]) -> Reference:
    """The reference that the task states for the checkpoint's base model.

    Raises:
        OptionError: the task states none, or only for another base model.
    """
    if not spec.references:
        raise OptionError(
            f"{spec.task} states no reference; pass --reference RUN_DIR, a run of the retrained "
            "model, or leave --reference out to get the AUC alone"
        )
    for stated in spec.references:
        if not _differences(stated, config):
            recorded = AucReference(
                auc=stated.auc, kind="stated", source=f"{stated.base_model}: {stated.source}"
            )
            return Reference(ReferenceScores(stated.auc), recorded)
    stated = spec.references[0]
    raise OptionError(
        f"{spec.task}: the stated reference is for {stated.base_model}, and this checkpoint is "
        f"another model ({', '.join(_differences(stated, config))}); pass --reference RUN_DIR, a "
        "run of its own retrained model"
    )


def _differences(stated: StatedReference, config: Mapping[str, object]) -> list[str]:
    return [
        f"{key} {config.get(key, 'absent')} instead of {value}"
        for key, value in stated.config.items()
        if config.get(key) != value
    ]


def run_reference(
    spec: LikelihoodTask,
    run: RetrainedRun,
    task: Fingerprint,
    ids: Mapping[str, tuple[str, ...]],
    checkpoint: Checkpoint,
) -> Reference:
    """The reference from a run of the retrained model, once it is shown to be comparable.

    task: of the task to be measured. ids: the ids of the texts of each split, in order.

    Raises:
        OptionError: the run lacks the task, or differs in version, data, texts or tokenizer.
        ResultError: its records are damaged.
    """
    where = f"--reference {run.folder.path}"
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
    there |= Fingerprint.of({"tokenizer": run.result.checkpoint.tokenizer_sha256})
    here = task | Fingerprint.of({"tokenizer": checkpoint.tokenizer_sha256})
    _require_same(where, there, here)
    groups = _groups(run, spec, found.records_sha256)
    for split, texts in ids.items():
        there = Fingerprint.of_samples(f"{split!r} texts", [*groups.get(split, {})])
        _require_same(where, there, Fingerprint.of_samples(f"{split!r} texts", texts))
    members = tuple(groups[spec.member_split].values())
    nonmembers = tuple(groups[spec.nonmember_split].values())
    value = auc(members, nonmembers)
    if value <= 0:
        raise MetricError(
            f"{where}: its AUC is 0, so PrivLeak is not defined; a model that tells all forget "
            "texts apart was trained on them"
        )
    recorded = AucReference(
        auc=value,
        kind="run",
        source=f"{run.result.checkpoint.path} at {run.result.condition.name}",
        weights_sha256=run.result.checkpoint.weights_sha256,
    )
    return Reference(ReferenceScores(value, members, nonmembers), recorded)


def _require_same(where: str, there: Fingerprint, here: Fingerprint) -> None:
    if there != here:
        raise OptionError(f"{where} is another measurement: {differences(there, here)[0]}")


def _groups(run: RetrainedRun, spec: LikelihoodTask, sha256: str) -> dict[str, dict[str, float]]:
    """The task's attack score by split and id."""
    groups: dict[str, dict[str, float]] = {}
    for record in run.folder.read_records(spec.task, sha256):
        if not isinstance(record, LikelihoodRecord) or spec.attack not in record.scores:
            raise ResultError(
                f"{run.folder.samples_file(spec.task)}: record {record.id} has no {spec.attack}"
            )
        groups.setdefault(record.split, {})[record.id] = record.scores[spec.attack]
    return groups
