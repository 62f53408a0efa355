"""One checkpoint at one precision, task by task: what is there already, what is still to do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from unlearnbench.environment import describe_environment, source_sha256
from unlearnbench.errors import ResultError
from unlearnbench.metrics.membership import privleak
from unlearnbench.models.base import Model
from unlearnbench.plan import Plan
from unlearnbench.reference import Reference, RetrainedRun, run_reference, stated_reference
from unlearnbench.results import (
    Checkpoint,
    Precision,
    RunResult,
    SampleRecord,
    Settings,
    TaskResult,
)
from unlearnbench.runfolder import RunFolder, model_folder_name
from unlearnbench.scoring import make_records, summarize_task
from unlearnbench.tasks import LikelihoodTask

__all__ = ["Job", "Run", "prepare", "run_path", "run_tasks"]

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Job:
    """Everything that is the same for all precisions of one command."""

    plans: tuple[Plan, ...]
    output: Path
    protocol: str
    seed: int
    limit: int | None
    ppl_lower: bool
    batch_size: int | None
    reference: RetrainedRun | Literal["stated"] | None
    progress: bool
    truncate_left: bool = False

    def settings(self, dtype: str, device: str) -> Settings:
        """What makes two runs of this job comparable."""
        return Settings(
            protocol=self.protocol,
            dtype=dtype,
            device=device.split(":")[0],
            seed=self.seed,
            limit=self.limit,
            ppl_lower=self.ppl_lower,
            truncate_left=self.truncate_left or None,
        )


@dataclass
class Run:
    """One precision of a job: its folder, what is in it already, and what is still to do."""

    job: Job
    checkpoint: Checkpoint
    precision: Precision
    settings: Settings
    folder: RunFolder
    references: Mapping[str, Reference]
    found: RunResult | None = None
    done: dict[str, TaskResult] = field(default_factory=dict)

    def open(self) -> list[Plan]:
        """Take over what stands in the folder and return the plans that are still to run.

        Raises:
            ResultError: the folder holds a run of another configuration.
        """
        self.found = self.folder.read()
        if self.found is None:
            return list(self.job.plans)
        self.folder.check_settings(self.found, self.settings, self.checkpoint, self.precision)
        self.done = dict(self.found.tasks)
        if self.found.environment.source_sha256 != source_sha256():
            log.warning("%s was begun with another version of unlearnbench", self.folder.path)
        return [plan for plan in self.job.plans if not self._take_over(plan)]

    def _take_over(self, plan: Plan) -> bool:
        name = plan.spec.task
        earlier = self.done.get(name)
        if earlier is None:
            return False
        difference = plan.differs_from(earlier)
        if difference:
            raise ResultError(
                f"{self.folder.path} holds another {name}: {difference}; use another --output"
            )
        records = self.folder.read_records(name, earlier.records_sha256)
        # From the records, which were checked: a number in run.json is not taken on trust.
        fresh = self._summarize(plan, records, earlier.records_sha256)
        if name not in self.references and earlier.auc_reference is not None:
            self._require_privleak(name, fresh, earlier)
            kept = ("value", "stderr", "ci", "auc_reference")
            fresh = fresh.model_copy(update={key: getattr(earlier, key) for key in kept})
        self.done[name] = fresh
        log.info("%s: already in %s, not computed again", name, self.folder.path)
        _say_without_reference(plan, self.done[name])
        return True

    def _require_privleak(self, name: str, fresh: TaskResult, earlier: TaskResult) -> None:
        """Hold the stored PrivLeak against the records and the stored reference."""
        reference, stored = earlier.auc_reference, earlier.value
        if fresh.auc is None or reference is None or stored is None:
            raise ResultError(f"{self.folder.run_file}: {name} has a reference and no value")
        expected = privleak(fresh.auc, reference.auc)
        if abs(expected - stored) > 1e-6 * max(1.0, abs(expected)):
            raise ResultError(
                f"{self.folder.run_file}: {name} states PrivLeak {stored:g}, and its records give "
                f"{expected:g}; remove {self.folder.path} to evaluate again"
            )

    def finish(self, plan: Plan, records: Sequence[SampleRecord]) -> None:
        """Keep a task's records and result."""
        sha256 = self.folder.write_records(plan.spec.task, records)
        self.done[plan.spec.task] = self._summarize(plan, records, sha256)

    def _summarize(self, plan: Plan, records: Sequence[SampleRecord], sha256: str) -> TaskResult:
        reference = self.references.get(plan.spec.task)
        return summarize_task(plan, records, sha256, reference, self.job.seed)

    def result(self, model: Model) -> RunResult:
        """The run as it stands, made with ``model``."""
        return RunResult(
            checkpoint=model.checkpoint,
            precision=model.precision,
            protocol=self.job.protocol,
            settings=self.settings,
            tasks=dict(sorted(self.done.items())),
            environment=describe_environment(model.device, model.dtype, self.job.batch_size),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


def run_path(output: Path, checkpoint: Checkpoint, precision: str) -> Path:
    """``output/<model>/<precision>``."""
    return output / model_folder_name(checkpoint) / precision


def prepare(
    job: Job,
    checkpoint: Checkpoint,
    config: Mapping[str, object],
    precision: Precision,
    settings: Settings,
) -> tuple[Run, list[Plan]]:
    """Open a run folder; returns the run and the plans that are still to be measured.
    ``precision`` is as asked for; its proof comes with the model.

    Raises:
        ResultError: the folder holds something else.
        OptionError: the reference is no reference for these tasks.
    """
    folder = RunFolder(run_path(job.output, checkpoint, precision.name))
    run = Run(job, checkpoint, precision, settings, folder, _references(job, checkpoint, config))
    return run, run.open()


def _references(
    job: Job, checkpoint: Checkpoint, config: Mapping[str, object]
) -> dict[str, Reference]:
    """The reference of every likelihood task, checked before any model is loaded."""
    found: dict[str, Reference] = {}
    for plan in job.plans:
        spec = plan.spec
        if not isinstance(spec, LikelihoodTask) or job.reference is None:
            continue
        if job.reference == "stated":
            found[spec.task] = stated_reference(spec, config)
        else:
            ids = {split: plan.ids(split) for split in spec.used_splits}
            found[spec.task] = run_reference(
                spec, job.reference, plan.splits, ids, checkpoint, plan.task_sha256
            )
        if found[spec.task].scores.auc < 0.05:
            log.warning(
                "%s: the reference AUC is %.3g; so near 0 PrivLeak explodes, read the AUC instead",
                spec.task,
                found[spec.task].scores.auc,
            )
    return found


def run_tasks(run: Run, todo: list[Plan], load: Callable[[], Model]) -> RunResult:
    """Measure what is to do and write the result after every task. ``load`` gives the model; it is
    not called where nothing is to do.

    Raises:
        ModelOutputError, MetricError: a task failed; those before it are kept.
    """
    if run.found is not None and not todo:
        return _refresh(run, run.found)
    model = load()
    for plan in todo:
        run.finish(plan, _measure(run.job, plan, model))
        result = run.result(model)
        run.folder.write_run(result)
        _say_finished(run, plan)
    return result


def _refresh(run: Run, found: RunResult) -> RunResult:
    """A run that was complete: only PrivLeak may have got another reference."""
    result = found.model_copy(update={"tasks": dict(sorted(run.done.items()))})
    if result != found:
        run.folder.write_run(result)
    return result


def _measure(job: Job, plan: Plan, model: Model) -> list[SampleRecord]:
    from tqdm import tqdm

    passes = 2 if job.ppl_lower and isinstance(plan.spec, LikelihoodTask) else 1
    label = f"{plan.spec.task} [{model.precision.name}]"
    with tqdm(
        total=passes * len(plan.samples), desc=label, unit="sample", disable=not job.progress
    ) as bar:
        return make_records(plan, model, job.protocol, job.seed, job.ppl_lower, bar.update)


def _say_finished(run: Run, plan: Plan) -> None:
    name = plan.spec.task
    result = run.done[name]
    _say_without_reference(plan, result)
    if result.empty_outputs:
        log.warning("%s: %d of %d outputs are empty", name, result.empty_outputs, result.n)
    log.info("%s: done, %s", name, run.folder.samples_file(name))


def _say_without_reference(plan: Plan, result: TaskResult) -> None:
    name = plan.spec.task
    if result.value is None:
        has_stated = isinstance(plan.spec, LikelihoodTask) and plan.spec.references
        stated = " or, for its base model, --reference stated" if has_stated else ""
        log.warning(
            "%s: no PrivLeak value, only the AUC, because no reference was given; pass --reference "
            "RUN_DIR (a run of the retrained model)%s with the same command",
            name,
            stated,
        )
