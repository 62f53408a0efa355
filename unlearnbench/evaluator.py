"""The main job: a checkpoint, precisions and tasks go in; run folders and results come out."""

from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unlearnbench import quant as quant_backends
from unlearnbench.data import DataOptions
from unlearnbench.environment import describe_environment
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.models.base import Model
from unlearnbench.plan import Plan, make_plan
from unlearnbench.reference import (
    Reference,
    RetrainedRun,
    open_reference,
    run_reference,
    stated_reference,
)
from unlearnbench.results import Checkpoint, RunResult, SampleRecord, Settings, TaskResult
from unlearnbench.runfolder import RunFolder, model_folder_name, require_writable
from unlearnbench.scoring import make_records, summarize_task
from unlearnbench.tasks import PROTOCOLS, LikelihoodTask, load_registry, split_names

if TYPE_CHECKING:
    from unlearnbench.models.source import LoadOptions, Source
    from unlearnbench.quant.base import PrecisionSpec

__all__ = ["evaluate", "run_path"]

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class _Job:
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

    def settings(self, dtype: str, device: str) -> Settings:
        return Settings(
            protocol=self.protocol,
            dtype=dtype,
            device=device.split(":")[0],
            seed=self.seed,
            limit=self.limit,
            ppl_lower=self.ppl_lower,
        )


def evaluate(
    model: str | Path | Model,
    tasks: str | Sequence[str],
    quant: str | Sequence[str] = "none",
    *,
    output: str | Path = "results",
    include_path: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    allow_data_drift: bool = False,
    limit: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | None = None,
    dtype: str = "auto",
    protocol: str = "muse",
    reference: str | Path | None = None,
    ppl_lower: bool = False,
    revision: str | None = None,
    base: str | None = None,
    adapter: Literal["merge", "keep"] = "merge",
    allow_adapter_base: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    progress: bool = False,
) -> list[RunResult]:
    """Evaluate a checkpoint on tasks at one or more precisions, one after another.

    The options are the command line's, under the same names (``unlearnbench --help``). ``model``
    is a folder, a ``.gguf`` file, a hub id, or any object that implements ``Model``, which has its
    precision already. ``data_dir`` defaults to the environment's ``UNLEARNBENCH_DATA``.

    Returns:
        One result a precision, in the order asked for; each also stands in its run folder,
        ``output/<model>/<precision>/``, written after every task. A task that already stands there
        is not computed again.

    Raises:
        UnlearnbenchError: bad input, or a measurement that cannot be trusted. What was finished
            before is in the run folders.
    """
    from unlearnbench.models.source import LoadOptions

    _check_options(limit, batch_size, dtype, protocol)
    specs = load_registry(include_path).resolve(split_names(tasks))
    for spec in specs:
        if spec.superseded_by:
            log.warning("%s is superseded by %s", spec.task, spec.superseded_by)
    require_writable(Path(output))
    root = data_dir if data_dir is not None else os.environ.get("UNLEARNBENCH_DATA") or None
    options = DataOptions(Path(root) if root is not None else None, allow_data_drift)
    job = _Job(
        plans=tuple(make_plan(spec, options, limit) for spec in specs),
        output=Path(output),
        protocol=protocol,
        seed=seed,
        limit=limit,
        ppl_lower=ppl_lower,
        batch_size=None if batch_size == "auto" else batch_size,
        reference=_open_reference(reference),
        progress=progress,
    )
    if not isinstance(model, (str, Path)):
        return [_evaluate_given(job, model, quant)]
    load = LoadOptions(revision, base, adapter, allow_adapter_base, trust_remote_code, allow_pickle)
    return _evaluate_path(job, str(model), quant, load, dtype, device)


def _check_options(limit: int | None, batch_size: object, dtype: str, protocol: str) -> None:
    if limit is not None and limit < 1:
        raise OptionError(f"--limit {limit} leaves no sample; use 1 or more, or leave it out")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
        raise OptionError(f"--batch-size {batch_size}: use 'auto' or a whole number above 0")
    if dtype not in ("auto", "fp32", "bf16", "fp16"):
        raise OptionError(f"--dtype {dtype}: use auto, fp32, bf16 or fp16")
    if protocol not in PROTOCOLS:
        raise OptionError(f"--protocol {protocol}: use {' or '.join(PROTOCOLS)}")


def _open_reference(reference: str | Path | None) -> RetrainedRun | Literal["stated"] | None:
    if reference is None or reference == "stated":
        return "stated" if reference == "stated" else None
    return open_reference(Path(reference))


@dataclass
class _Run:
    """One precision of a job: its folder, what is in it already, and what is still to do."""

    job: _Job
    checkpoint: Checkpoint
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
        self.folder.check_settings(self.found, self.settings, self.checkpoint)
        self.done = dict(self.found.tasks)
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
        if name in self.references:  # the reference moves PrivLeak's zero, not the records
            self.done[name] = self._summarize(plan, records, earlier.records_sha256)
        log.info("%s: already in %s, not computed again", name, self.folder.path)
        _say_without_reference(name, self.done[name])
        return True

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


def _prepare(
    job: _Job,
    checkpoint: Checkpoint,
    config: Mapping[str, object],
    precision: str,
    settings: Settings,
) -> tuple[_Run, list[Plan]]:
    folder = RunFolder(run_path(job.output, checkpoint, precision))
    run = _Run(job, checkpoint, settings, folder, _references(job, checkpoint, config))
    return run, run.open()


def _references(
    job: _Job, checkpoint: Checkpoint, config: Mapping[str, object]
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


def _evaluate_given(job: _Job, model: Model, precision: str | Sequence[str]) -> RunResult:
    if split_names(precision) != ["none"]:
        raise OptionError("a Model object has its precision already; leave quant out")
    settings = job.settings(model.dtype, model.device)
    run, todo = _prepare(job, model.checkpoint, model.config, model.precision.name, settings)
    return _run_tasks(run, todo, model)


def _evaluate_path(
    job: _Job,
    path: str,
    precisions: str | Sequence[str],
    load: LoadOptions,
    dtype: str,
    device: str | None,
) -> list[RunResult]:
    from unlearnbench.models.hf import pick_device, pick_dtype, require_available
    from unlearnbench.models.source import open_source

    specs = quant_backends.resolve(split_names(precisions))
    where = pick_device(device)
    for spec in specs:
        require_available(spec, where)
    source = open_source(path, load, keep=len(specs) > 1)
    config = source.config.to_dict()
    prepared = []
    for spec in specs:  # every conflict is found before the first model is loaded
        chosen = pick_dtype(dtype, spec, source.own_dtype, where)
        settings = job.settings(chosen, where)
        prepared.append((spec, _prepare(job, source.checkpoint, config, spec.name, settings)))
    return [_run_precision(source, spec, run, todo, where) for spec, (run, todo) in prepared]


def _run_precision(
    source: Source, spec: PrecisionSpec, run: _Run, todo: list[Plan], device: str
) -> RunResult:
    from unlearnbench.models.hf import load_model

    if not todo and run.found is not None:
        return _refresh(run, run.found)
    model = load_model(source, spec, run.settings.dtype, device, run.job.batch_size)
    source.release()
    try:
        return _run_tasks(run, todo, model)
    finally:
        del model
        gc.collect()


def _run_tasks(run: _Run, todo: list[Plan], model: Model) -> RunResult:
    if not todo and run.found is not None:
        return _refresh(run, run.found)
    for plan in todo:
        run.finish(plan, _measure(run.job, plan, model))
        result = run.result(model)
        run.folder.write_run(result)
        _say_finished(run, plan)
    return result


def _refresh(run: _Run, found: RunResult) -> RunResult:
    """A run that was complete: only PrivLeak may have got another reference."""
    result = found.model_copy(update={"tasks": dict(sorted(run.done.items()))})
    if result != found:
        run.folder.write_run(result)
    return result


def _measure(job: _Job, plan: Plan, model: Model) -> list[SampleRecord]:
    from tqdm import tqdm

    passes = 2 if job.ppl_lower and isinstance(plan.spec, LikelihoodTask) else 1
    label = f"{plan.spec.task} [{model.precision.name}]"
    with tqdm(
        total=passes * len(plan.samples), desc=label, unit="sample", disable=not job.progress
    ) as bar:
        return make_records(plan, model, job.protocol, job.seed, job.ppl_lower, bar.update)


def _say_finished(run: _Run, plan: Plan) -> None:
    name = plan.spec.task
    result = run.done[name]
    _say_without_reference(name, result)
    if result.empty_outputs:
        log.warning("%s: %d of %d outputs are empty", name, result.empty_outputs, result.n)
    log.info("%s: done, %s", name, run.folder.samples_file(name))


def _say_without_reference(name: str, result: TaskResult) -> None:
    if result.value is None:
        log.warning(
            "%s: no PrivLeak value, only the AUC, because no reference was given; pass --reference "
            "RUN_DIR (a run of the retrained model) or --reference stated, with the same command",
            name,
        )
