"""One checkpoint under one condition: its run folder, what is there already, and what is measured.

Rows have become samples (tasks/rows.py); here samples become answers, answers records and
records a result, task by task, each written as soon as it stands.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from unlearnbench.errors import DataError, MetricError, ResultError, one_line
from unlearnbench.evaluation.answers import Journal, make_records, request_ids, task_fingerprint
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.outcome import Failures
from unlearnbench.evaluation.reference import RetrainedRun, find_references, keep_reference
from unlearnbench.lm_eval.suite import Suite, samples_path
from unlearnbench.models.base import Model
from unlearnbench.results import (
    Checkpoint,
    Condition,
    Environment,
    GenerationRecord,
    HarnessResult,
    RunResult,
    SampleRecord,
    Settings,
    TaskResult,
)
from unlearnbench.runs.fingerprint import (
    Fingerprint,
    describe_environment,
    differences,
    environments,
    source_sha256,
)
from unlearnbench.runs.folder import RunFolder, encode_records, read_run, run_path
from unlearnbench.tasks.held import FORM
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample, TaskReference
from unlearnbench.util.files import content_sha256, lock_folder, read_bytes
from unlearnbench.util.process import ProgressLine

if TYPE_CHECKING:
    from unlearnbench.evaluation.drafts import Drafts

log = logging.getLogger("unlearnbench")
R = TypeVar("R", TaskResult, HarnessResult)


@dataclass(frozen=True)
class Evaluation:
    """Everything that is the same under all conditions of one command."""

    tasks: tuple[TaskSamples, ...]
    options: Options
    reference: RetrainedRun | Literal["stated"] | None
    suite: Suite | None = None
    """lm-eval's tasks, where some were asked for."""
    processes: int = 1
    chat: Mapping[str, Any] = field(default_factory=dict)
    """What ``Settings`` record of the chat template; empty without one."""
    drafts: Drafts | None = None
    """What is known of answers; None where nothing will be."""

    @property
    def batch_size(self) -> int | None:
        """None where the model is to choose."""
        return None if self.options.batch_size == "auto" else self.options.batch_size

    def with_drafts(self, conditions: int) -> Evaluation:
        """The same, which keeps what is known of answers, where something will be."""
        runs = [self.reference] if isinstance(self.reference, RetrainedRun) else []
        runs += [RetrainedRun(RunFolder(p), read_run(p)) for p in self.options.drafts_from]
        if self.options.drafts == "off" or (conditions == 1 and not runs):
            return self
        from unlearnbench.evaluation.drafts import Drafts

        drafts, settings = Drafts(), self.settings("fp32", "cpu")  # neither moves a prompt
        for run in runs:
            drafts.take_run(run.folder, run.result, self.tasks, settings)
        return replace(self, drafts=drafts)

    def failures(self, conditions: int) -> Failures:
        """For what fails among these tasks under so many conditions."""
        asked = len(self.tasks) + (len(self.suite.loaded.tasks) if self.suite else 0)
        failures = Failures(conditions * asked)
        for name, line in self.suite.loaded.failed.items() if self.suite else ():
            failures.note(name, DataError(line))
        return failures

    def settings(self, dtype: str, device: str) -> Settings:
        """What makes two runs comparable, as they record it."""
        options = self.options
        given = options.gen_kwargs
        return Settings(
            protocol=options.protocol,
            dtype=dtype,
            device="cuda" if device == "auto" else device.split(":")[0],
            seed=options.seed,
            limit=options.limit,
            held_back=options.relearn_on if re.fullmatch(FORM, options.relearn_on) else None,
            ppl_lower=options.ppl_lower,
            gradnorm=options.gradnorm or None,
            gen_kwargs=json.dumps(dict(given), sort_keys=True) if given else None,
            **self.chat,
            think_end_token=options.think_end_token,
            add_bos_token=options.add_bos_token,
            max_length=options.max_length,
            mask_pad_id=options.mask_pad_id or None,
            truncate_left=options.truncate_left or None,
            backend=None if options.backend == "hf" else options.backend,
        )

    def result(
        self,
        model: Model,
        settings: Settings,
        tasks: Mapping[str, TaskResult],
        harness: Mapping[str, HarnessResult],
    ) -> RunResult:
        """A run as it stands now, with the results that it has; those that do not say where they
        were measured were measured here.
        """
        here = describe_environment(model.device, model.dtype, self.batch_size)
        here = here.model_copy(update={"products": getattr(model, "products", None)})
        return RunResult(
            checkpoint=model.checkpoint,
            condition=model.condition,
            protocol=settings.protocol,
            settings=settings,
            tasks=_sorted(_measured_in(here, tasks)),
            harness=_sorted(_measured_in(here, harness)) or None,
            environment=here,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )


def _measured_in(environment: Environment, results: Mapping[str, R]) -> dict[str, R]:
    """The results, those that lack an environment with this one. A group of lm-eval's has none."""
    given = {n for n, r in results.items() if r.environment or getattr(r, "kind", "") == "group"}
    made = {"environment": environment}
    return {n: r if n in given else r.model_copy(update=made) for n, r in results.items()}


def _sorted(results: Mapping[str, R]) -> dict[str, R]:
    return dict(sorted(results.items()))


class Run:
    """One condition of an evaluation. Opening it checks everything that can be refused before a
    model is loaded; ``measure`` does what is left to do.
    """

    _shares = True  # what the reference has of the same weights

    def __init__(
        self,
        evaluation: Evaluation,
        checkpoint: Checkpoint,
        config: Mapping[str, object],
        condition: Condition,
        settings: Settings,
    ) -> None:
        """``condition`` is as asked for; its proof comes with the model.

        Raises:
            OptionError: the reference is none for these tasks.
        """
        self._evaluation, self._settings, self._condition = evaluation, settings, condition
        self._checkpoint = checkpoint
        self._references = {}
        if (reference := evaluation.reference) is not None:
            self._references = find_references(evaluation.tasks, reference, checkpoint, config)
        self._folder = RunFolder(run_path(evaluation.options.output, checkpoint, condition.name))
        self._todo, self._harness_todo = dict[str, Journal](), list[str]()
        self._shared: dict[str, bytes] = {}  # records of the reference, which are these too
        self.result: RunResult | None = None
        """The run as it stands; None before its first task is finished."""

    def open(self, locks: ExitStack) -> None:
        """Take over what stands in the folder. ``locks`` keeps other processes out of it.

        Raises:
            ResultError: the folder holds another run, or half a task of one, or is in use.
        """
        folder, evaluation, options = self._folder, self._evaluation, self._evaluation.options
        self._locks = locks
        self._lock()
        self._stored = None if options.fresh else folder.read()
        facts = (
            Fingerprint.of_run(self._checkpoint, self._settings, self._condition)
            | Fingerprint.of({"processes": evaluation.processes, "drafts": options.drafts})
            | Fingerprint.of_machine(self._settings, self._condition, evaluation.batch_size)
        )
        tasks, harness = {}, {}
        if self._stored is not None:
            folder.require_same(self._stored, self._checkpoint, self._settings, self._condition)
            if {e.source_sha256 for e in environments(self._stored).values()} - {source_sha256()}:
                log.warning("%s was begun with another version of unlearnbench", folder.path)
            tasks, harness = dict(self._stored.tasks), dict(self._stored.harness or {})
        asked = self._checkpoint, self._settings, self._condition
        equal = _equal_run(evaluation, *asked) if self._shares else None
        for task in evaluation.tasks:
            name = task.spec.task
            given = self._references.get(name), self._settings, evaluation.drafts
            if name in tasks and tasks[name].drawn is None:
                tasks[name] = _take_over(folder, task, tasks[name], *given)
            elif equal is not None and (found := _share(equal, task, *given)) is not None:
                tasks[name], self._shared[name] = found
            else:
                self._todo[name] = _open_journal(folder, task, self._settings, facts, options.fresh)
        if (suite := evaluation.suite) is not None:
            self._harness_todo = suite.missing(harness, folder.path)
            if harness and not self._harness_todo:
                harness |= suite.aggregate(harness)  # old results may belong to another group now
        if (stored := self._stored or (equal.result if equal and tasks else None)) is not None:
            self.result = _as_now(stored, self._checkpoint, tasks, harness)

    def measure(self, load: Callable[[], Model], failures: Failures) -> RunResult | None:
        """Have a model measured on what is to do, and return the run as it stands; None where it
        has no result at all. ``load`` is not called where nothing is to do.

        Raises:
            UnlearnbenchError: what hits every task alike, or the only one; those before it are
                kept. What fails alone goes to ``failures``.
        """
        if self.result is not None and not self._todo and not self._harness_todo:
            self._begin()
            return self.result
        model: Model | None = None
        with failures.guard(self._folder.path, self._condition.name):
            model = load()
        if model is not None:
            self._begin()
            self._measure_all(model, failures)
        return self.result

    def _measure_all(self, model: Model, failures: Failures) -> None:
        folder, condition = self._folder.path, self._condition.name
        for task in self._evaluation.tasks:
            if task.spec.task in self._todo:
                with failures.guard(folder, condition, task.spec.task):
                    self._measure(task, model)
        suite = self._evaluation.suite
        if suite is not None and self._harness_todo:
            asker = suite.adapt(model)
            for name in self._harness_todo:
                with failures.guard(folder, condition, name):
                    known = (self.result.harness if self.result else None) or {}
                    self._keep(model, {}, _measure_theirs(name, suite, asker, self._folder, known))
                    log.info("%s: done, %s", name, samples_path(folder, name))

    def _measure(self, task: TaskSamples, model: Model) -> None:
        """Samples become answers, answers records, records a result. The journal is removed last:
        a process that dies before that finds every answer again.
        """
        name, journal = task.spec.task, self._todo[task.spec.task]
        try:
            records = _answer(task, model, self._settings, journal, self._evaluation)
        finally:
            journal.close()
        content = encode_records(records)
        sha256, reference = hashlib.sha256(content).hexdigest(), self._references.get(name)
        result = task.result(records, sha256, reference, self._settings.seed)
        result = _with_drafts(result, journal, self._evaluation)
        self._folder.write_file(self._folder.samples_file(name), content)
        self._keep(model, {name: result}, {})
        journal.remove()
        _say_finished(task, result, self._folder.samples_file(name))

    def _keep(
        self, model: Model, tasks: Mapping[str, TaskResult], harness: Mapping[str, HarnessResult]
    ) -> None:
        """Write the run with these results too."""
        if (known := self.result) is not None:
            tasks = {**_measured_in(known.environment, known.tasks), **tasks}
            harness = {**_measured_in(known.environment, known.harness or {}), **harness}
        self.result = self._evaluation.result(model, self._settings, tasks, harness)
        self._folder.write_run(self.result)

    def _lock(self) -> None:
        self._folder.require_folder()
        self._locks.enter_context(lock_folder(self._folder.path))

    def _begin(self) -> None:
        """Make room: set an old run aside where that was asked for, and remove what killed
        processes left. A value that was taken over and got another reference is written.
        """
        if self._evaluation.options.fresh:
            aside = self._folder.set_aside()
            if aside is not None:
                log.info("the earlier run is now in %s", aside)
                self._lock()
        for name, content in self._shared.items():
            self._folder.write_file(self._folder.samples_file(name), content)
        self._folder.clean(_whole(self._stored) | self._shared.keys())
        if self.result is not None and self.result != self._stored:
            self._folder.write_run(self.result)


def _whole(run: RunResult | None) -> set[str]:
    """The tasks that a run has whole."""
    return {name for name, task in run.tasks.items() if task.drawn is None} if run else set()


def _measure_theirs(
    name: str, suite: Suite, asker: Any, folder: RunFolder, known: Mapping[str, HarnessResult]
) -> dict[str, HarnessResult]:
    """A task of lm-eval's, with its samples written, and the groups that it belongs to."""
    result, samples = suite.measure(name, asker)
    folder.write_file(samples_path(folder.path, name), samples)
    return {name: result, **suite.aggregate({**known, name: result})}


def _as_now(
    stored: RunResult,
    now: Checkpoint,
    tasks: Mapping[str, TaskResult],
    harness: Mapping[str, HarnessResult],
) -> RunResult:
    """A stored run with its results as taken over. Of the same checkpoint an earlier release may
    have known less: which training it is of, what its tokenizer does.
    """
    then = stored.checkpoint
    does = then.tokenizer_probe_sha256 or now.tokenizer_probe_sha256
    known_now = {"origin": then.origin | now.origin, "tokenizer_probe_sha256": does}
    checkpoint = then.model_copy(update=known_now)
    known = {"tasks": _sorted(tasks), "harness": _sorted(harness) or None}
    return stored.model_copy(update={**known, "checkpoint": checkpoint})


def _with_drafts(result: TaskResult, journal: Journal, evaluation: Evaluation) -> TaskResult:
    if evaluation.drafts is None:
        return result
    from unlearnbench.evaluation.drafts import draft_figures

    return result.model_copy(update={"drafts": draft_figures(journal.found.values())})


def _answer(
    task: TaskSamples, model: Model, settings: Settings, journal: Journal, evaluation: Evaluation
) -> list[SampleRecord]:
    if task.asking is not None:
        task.asking.search(model, journal.state(), journal.keep_state)
    stage, total = f"{task.spec.task} [{model.condition.name}]", len(request_ids(task, settings)[0])
    progress = evaluation.options.progress
    with ProgressLine(stage, total, "sample", progress, len(journal.found)) as shown:
        journal.tick = shown.update
        return make_records(task, model, settings, journal, evaluation.drafts)


def _open_journal(
    folder: RunFolder, task: TaskSamples, settings: Settings, fingerprint: Fingerprint, fresh: bool
) -> Journal:
    """The answers that an interrupted run left, if any, of just this measurement."""
    name = task.spec.task
    asked, kind = request_ids(task, settings)
    texts = content_sha256([[sample.id, sample.text] for sample in task.samples])
    own = Fingerprint.of({"task": name, "samples": len(task.samples), "rendered prompts": texts})
    if task.asking is not None:
        put = [task.asking.asked(sample).prompt for sample in task.samples]
        own |= Fingerprint.of({"prompts as the condition puts them": content_sha256(put)})
    fingerprint = fingerprint | task_fingerprint(task) | own
    journal = Journal(folder.journal_file(name), fingerprint, asked, kind)
    if not fresh:
        journal.read()
    if journal.found:
        log.info("%s: goes on after %d of %d answers", name, len(journal.found), len(asked))
    return journal


def _take_over(
    folder: RunFolder,
    task: TaskSamples,
    earlier: TaskResult,
    reference: TaskReference | None,
    settings: Settings,
    drafts: Drafts | None,
) -> TaskResult:
    """A task's result as its records give it: a number in run.json is not taken on trust. What the
    model answered goes to ``drafts``.
    """
    name = task.spec.task
    there = Fingerprint.of_task(earlier.version, earlier.task_sha256, earlier.data)
    here = task_fingerprint(task)
    if there != here:
        raise ResultError(
            f"{folder.path} holds another {name}: {'; '.join(differences(there, here))}; "
            "use another --output"
        )
    records = folder.read_records(name, earlier.records_sha256)
    asked = {sample.id: sample for sample in task.samples}
    for record in records:
        if isinstance(record, GenerationRecord) and not _is_of(record, asked.get(record.id), task):
            raise ResultError(
                f"{folder.path} holds {name} with another prompt of {one_line(record.id, 60)}; use "
                "another --output, or --fresh"
            )
    result = task.result(records, earlier.records_sha256, reference, settings.seed)
    kept = {name: getattr(earlier, name) for name in ("environment", "searches", "drafts")}
    result = result.model_copy(update=kept)
    if reference is None and earlier.auc_reference is not None:
        result = keep_reference(folder, name, result, earlier)
    log.info("%s: already in %s, not computed again", name, folder.path)
    _say_without_reference(task, result)
    if drafts is not None:
        drafts.take_records(task, records, settings)
    return result


def _equal_run(
    evaluation: Evaluation, checkpoint: Checkpoint, settings: Settings, condition: Condition
) -> RetrainedRun | None:
    """The reference, where it is of the same weights under the same condition, asked alike by this
    very version.
    """
    run = evaluation.reference
    if not isinstance(run, RetrainedRun) or evaluation.options.fresh:
        return None
    if {e.source_sha256 for e in environments(run.result).values()} != {source_sha256()}:
        return None
    try:
        run.folder.require_same(run.result, checkpoint, settings, condition)
    except ResultError:
        return None
    own = run.result.model_copy(update={"checkpoint": checkpoint})
    return RetrainedRun(run.folder, own)


def _share(
    run: RetrainedRun,
    task: TaskSamples,
    reference: TaskReference | None,
    settings: Settings,
    drafts: Drafts | None,
) -> tuple[TaskResult, bytes] | None:
    """A task's result and records as an equal run has them; None where it has none like it."""
    earlier = run.result.tasks.get(task.spec.task)
    if earlier is None or earlier.drawn is not None:
        return None
    measured = earlier.environment or run.result.environment
    try:
        content = read_bytes(run.folder.samples_file(task.spec.task), ResultError)
        result = _take_over(run.folder, task, earlier, reference, settings, drafts)
    except (ResultError, MetricError):  # another task's, damaged: nothing rests on them
        return None
    return result.model_copy(update={"environment": measured}), content


def _is_of(record: GenerationRecord, sample: Sample | None, task: TaskSamples) -> bool:
    """Whether a record is of just this prompt, as the condition puts it where that is known."""
    put = task.asking.asked(sample).prompt if task.asking and sample else None
    same = put is None or (record.asked is not None and record.asked.prompt == put)
    return sample is not None and record.prompt == sample.text and same


def _say_finished(task: TaskSamples, result: TaskResult, path: Path) -> None:
    _say_without_reference(task, result)
    if result.empty_outputs:
        log.warning(
            "%s: %d of %d outputs are empty", task.spec.task, result.empty_outputs, result.n
        )
    log.info("%s: done, %s", task.spec.task, path)


def _say_without_reference(task: TaskSamples, result: TaskResult) -> None:
    if result.value is None:
        stated = " or, for its base model, --reference stated" if task.spec.stated_aucs() else ""
        log.warning(
            "%s: no PrivLeak value, only the AUC, because no reference was given; pass --reference "
            "RUN_DIR (a run of the retrained model)%s with the same command",
            task.spec.task,
            stated,
        )
