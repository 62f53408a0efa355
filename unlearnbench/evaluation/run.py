"""One checkpoint at one condition, task by task: what is there already, what is still to do."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unlearnbench.errors import DataError, ResultError
from unlearnbench.evaluation.answers import make_records, request_ids
from unlearnbench.evaluation.failures import Failures
from unlearnbench.evaluation.journal import Journal
from unlearnbench.evaluation.reference import (
    RetrainedRun,
    run_reference,
    task_fingerprint,
)
from unlearnbench.metrics.membership import privleak
from unlearnbench.models.base import Model
from unlearnbench.results import (
    Checkpoint,
    Condition,
    Environment,
    HarnessResult,
    RunResult,
    SampleRecord,
    Settings,
    TaskResult,
)
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.runs.folder import RunFolder, encode_records, model_folder_name
from unlearnbench.runs.provenance import describe_environment, source_sha256
from unlearnbench.tasks.samples import TaskSamples
from unlearnbench.tasks.spec import TaskReference
from unlearnbench.util.lock import lock_folder

if TYPE_CHECKING:
    from unlearnbench.conditions.base import Attention
    from unlearnbench.lm_eval.suite import Suite

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Job:
    """Everything that is the same for all precisions of one command."""

    plans: tuple[TaskSamples, ...]
    output: Path
    protocol: str
    seed: int
    limit: int | float | None
    ppl_lower: bool
    batch_size: int | None
    reference: RetrainedRun | Literal["stated"] | None
    progress: bool
    fresh: bool = False
    suite: Suite | None = None
    """lm-eval's tasks, where some were asked for."""
    gen_kwargs: str | None = None
    chat_template_sha256: str | None = None
    truncate_left: bool = False
    backend: Literal["hf", "vllm"] = "hf"
    processes: int = 1
    attention: Attention = "auto"
    compiled: bool = False

    def failures(self, precisions: int) -> Failures:
        """For what fails among this job's tasks at so many precisions."""
        theirs = self.suite.loaded if self.suite is not None else None
        asked = len(self.plans) + (len(theirs.tasks) if theirs is not None else 0)
        failures = Failures(precisions * asked)
        for name, line in theirs.failed.items() if theirs is not None else ():
            failures.note(name, DataError(line))
        return failures

    def settings(self, dtype: str, device: str) -> Settings:
        """What makes two runs of this job comparable."""
        return Settings(
            protocol=self.protocol,
            dtype=dtype,
            device="cuda" if device == "auto" else device.split(":")[0],
            seed=self.seed,
            limit=self.limit,
            ppl_lower=self.ppl_lower,
            gen_kwargs=self.gen_kwargs,
            chat_template_sha256=self.chat_template_sha256,
            truncate_left=self.truncate_left or None,
            backend=None if self.backend == "hf" else self.backend,
        )


@dataclass
class Run:
    """One condition of a job: its folder, what is in it already, and what is still to do."""

    job: Job
    checkpoint: Checkpoint
    condition: Condition
    settings: Settings
    folder: RunFolder
    references: Mapping[str, TaskReference]
    locks: ExitStack
    found: RunResult | None = None
    latest: RunResult | None = None
    done: dict[str, TaskResult] = field(default_factory=dict)
    journals: dict[str, Journal] = field(default_factory=dict)
    harness: dict[str, HarnessResult] = field(default_factory=dict)

    @property
    def _fingerprint(self) -> Fingerprint:
        return Fingerprint.of_run(self.checkpoint, self.settings, self.condition)

    def lock(self) -> None:
        """Keep every other process out of the folder until ``locks`` is closed.

        Raises:
            ResultError: one is in it.
        """
        self.folder.require_folder()
        self.locks.enter_context(lock_folder(self.folder.path))

    def open(self) -> list[TaskSamples]:
        """Take over what stands in the folder and return the plans that are still to run.

        Raises:
            ResultError: the folder holds a run, or half a task, of another configuration.
        """
        todo = list(self.job.plans)
        if not self.job.fresh:
            self.found = self.folder.read()
        if self.found is not None:
            self._require_same(self.found)
            todo = [plan for plan in todo if not self._take_over(plan)]
            self.latest = self._as_found(self.found)
        for plan in todo:
            self._open_journal(plan)
        return todo

    def _as_found(self, found: RunResult) -> RunResult:
        """``found`` with what was taken over, or aggregated anew."""
        update: dict[str, object] = {"tasks": dict(sorted(self.done.items()))}
        if self.harness:
            update["harness"] = dict(sorted(self.harness.items()))
        return found.model_copy(update=update)

    def take_over_harness(self) -> None:
        """What lm-eval's tasks gave before may belong to another group now."""
        if self.found is not None:
            self.latest = self._as_found(self.found)

    def _require_same(self, found: RunResult) -> None:
        self.folder.require_same(found, self._fingerprint)
        self.done, self.harness = dict(found.tasks), dict(found.harness or {})
        if found.environment.source_sha256 != source_sha256():
            log.warning("%s was begun with another version of unlearnbench", self.folder.path)

    def _open_journal(self, plan: TaskSamples) -> None:
        name = plan.spec.task
        own = {
            "task": name,
            "samples": len(plan.samples),
            "processes": self.job.processes,
            "attention": self.job.attention,
            "compiled": self.job.compiled,
        }
        asked, kind = request_ids(plan, self.settings)
        fingerprint = (
            self._fingerprint
            | task_fingerprint(plan)
            | Fingerprint.of(own)
            | Fingerprint.of_machine(self.settings, self.condition, self.job.batch_size)
        )
        journal = Journal(self.folder.journal_file(name), fingerprint, asked, kind)
        if not self.job.fresh:
            journal.read()
        if journal.found:
            log.info("%s: goes on after %d of %d answers", name, len(journal.found), len(asked))
        self.journals[name] = journal

    def begin(self) -> None:
        """Make room: set an old run aside where that was asked for, and remove what killed
        processes left. A PrivLeak that was taken over and got another reference is written.
        """
        if self.job.fresh:
            aside = self.folder.set_aside()
            if aside is not None:
                log.info("the earlier run is now in %s", aside)
                self.lock()
        self.folder.clean(self.found.tasks if self.found else ())
        if self.latest is not None and self.latest != self.found:
            self.folder.write_run(self.latest)

    def _take_over(self, plan: TaskSamples) -> bool:
        name = plan.spec.task
        earlier = self.done.get(name)
        if earlier is None:
            return False
        there = Fingerprint.of_task(earlier.version, earlier.task_sha256, earlier.data)
        here = task_fingerprint(plan)
        if there != here:
            raise ResultError(
                f"{self.folder.path} holds another {name}: {'; '.join(differences(there, here))}; "
                "use another --output"
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

    def measure(self, plan: TaskSamples, model: Model) -> None:
        """Have a task answered, and keep its records and result. The journal is removed last: a
        process that dies before that finds every answer again.

        Raises:
            UnlearnbenchError: the task failed; answers before that are in the journal.
        """
        name, journal = plan.spec.task, self.journals[plan.spec.task]
        try:
            records = self._answer(plan, model, journal)
        finally:
            journal.close()
        sha256 = hashlib.sha256(encode_records(records)).hexdigest()
        result = self._summarize(plan, records, sha256)
        self.folder.write_records(name, records)
        self.done[name] = result
        self.keep(model)
        journal.remove()

    def _answer(self, plan: TaskSamples, model: Model, journal: Journal) -> list[SampleRecord]:
        from tqdm import tqdm

        with tqdm(
            initial=len(journal.found),
            total=len(request_ids(plan, self.settings)[0]),
            desc=f"{plan.spec.task} [{model.condition.name}]",
            unit="sample",
            disable=not self.job.progress,
        ) as bar:
            journal.tick = bar.update
            return make_records(plan, model, self.settings, journal)

    def keep(self, model: Model) -> None:
        """Write the run as it stands, made with ``model``."""
        self.latest = self.result(model)
        self.folder.write_run(self.latest)

    def _summarize(
        self, plan: TaskSamples, records: Sequence[SampleRecord], sha256: str
    ) -> TaskResult:
        reference = self.references.get(plan.spec.task)
        return plan.result(records, sha256, reference, self.job.seed)

    def result(self, model: Model) -> RunResult:
        """The run as it stands, made with ``model``."""
        return RunResult(
            checkpoint=model.checkpoint,
            condition=model.condition,
            protocol=self.job.protocol,
            settings=self.settings,
            tasks=dict(sorted(self.done.items())),
            harness=dict(sorted(self.harness.items())) or None,
            environment=self._environment(model),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def _environment(self, model: Model) -> Environment:
        found = describe_environment(model.device, model.dtype, self.job.batch_size)
        attention: str | None = self.job.attention
        if attention == "auto":  # what was taken, where a model says so
            named = getattr(model, "attention", None)
            attention = named if isinstance(named, str) else None
        return found.model_copy(
            update={"attention": attention, "compiled": self.job.compiled or None}
        )


def run_path(output: Path, checkpoint: Checkpoint, condition: str) -> Path:
    """``output/<model>/<condition>``."""
    return output / model_folder_name(checkpoint) / condition


def prepare(
    job: Job,
    checkpoint: Checkpoint,
    config: Mapping[str, object],
    condition: Condition,
    settings: Settings,
    locks: ExitStack,
) -> tuple[Run, list[TaskSamples]]:
    """Open a run folder; returns the run and the plans that are still to be measured.
    ``condition`` is as asked for; its proof comes with the model. ``locks`` keeps the folder's
    lock.

    Raises:
        ResultError: the folder holds something else, or another process writes it.
        OptionError: the reference is no reference for these tasks.
    """
    folder = RunFolder(run_path(job.output, checkpoint, condition.name))
    references = _references(job, checkpoint, config)
    run = Run(job, checkpoint, condition, settings, folder, references, locks)
    run.lock()
    todo = run.open()
    if job.suite is not None:
        job.suite.open(run)
    return run, todo


def _references(
    job: Job, checkpoint: Checkpoint, config: Mapping[str, object]
) -> dict[str, TaskReference]:
    """The reference of every likelihood task, checked before any model is loaded."""
    found: dict[str, TaskReference] = {}
    for plan in job.plans:
        spec = plan.spec
        if not spec.needs_reference or job.reference is None:
            continue
        if job.reference == "stated":
            found[spec.task] = spec.stated_reference(config)
        else:
            found[spec.task] = run_reference(plan, job.reference, checkpoint)
        if found[spec.task].scores.auc < 0.05:
            log.warning(
                "%s: the reference AUC is %.3g; so near 0 PrivLeak explodes, read the AUC instead",
                spec.task,
                found[spec.task].scores.auc,
            )
    return found


def run_tasks(
    run: Run, todo: list[TaskSamples], load: Callable[[], Model], failures: Failures
) -> RunResult | None:
    """Measure what is to do and write the result after every task. ``load`` gives the model; it is
    not called where nothing is to do. What fails alone goes to ``failures``.

    Returns:
        The run as it stands; None where it has no result at all.

    Raises:
        UnlearnbenchError: what hits every task alike, or the only one; those before it are kept.
    """
    folder, condition, suite = run.folder.path, run.condition.name, run.job.suite
    theirs = suite.open(run, say=False) if suite is not None else []
    if suite is not None and run.found is not None and not theirs:
        suite.aggregate(run)
        run.take_over_harness()
    if run.found is not None and not todo and not theirs:
        run.begin()
        return run.latest
    model = None
    with failures.guard(folder, condition):
        model = load()
    if model is not None:
        run.begin()
        for plan in todo:
            with failures.guard(folder, condition, plan.spec.task):
                run.measure(plan, model)
                _say_finished(run, plan)
        if suite is not None and theirs:
            suite.run(run, theirs, model, failures)
    return run.latest


def _say_finished(run: Run, plan: TaskSamples) -> None:
    name = plan.spec.task
    result = run.done[name]
    _say_without_reference(plan, result)
    if result.empty_outputs:
        log.warning("%s: %d of %d outputs are empty", name, result.empty_outputs, result.n)
    log.info("%s: done, %s", name, run.folder.samples_file(name))


def _say_without_reference(plan: TaskSamples, result: TaskResult) -> None:
    name = plan.spec.task
    if result.value is None:
        stated = " or, for its base model, --reference stated" if plan.spec.stated_aucs() else ""
        log.warning(
            "%s: no PrivLeak value, only the AUC, because no reference was given; pass --reference "
            "RUN_DIR (a run of the retrained model)%s with the same command",
            name,
            stated,
        )
