"""The main job: a checkpoint, precisions and tasks go in; run folders and results come out."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from unlearnbench.conditions.base import Attention
from unlearnbench.errors import OptionError
from unlearnbench.evaluation.loop import Asked, all_results, evaluate_path
from unlearnbench.evaluation.reference import RetrainedRun, open_reference
from unlearnbench.evaluation.run import Job, prepare, run_tasks
from unlearnbench.lm_eval.names import INSTALL, packaged_tasks, split_wanted
from unlearnbench.lm_eval.opening import Ask, open_suite
from unlearnbench.models.base import Model
from unlearnbench.results import RunResult
from unlearnbench.runs.folder import require_writable
from unlearnbench.tasks.overrides import (
    gen_kwargs_text,
    override_decoding,
)
from unlearnbench.tasks.rows import DataOptions
from unlearnbench.tasks.samples import make_plan
from unlearnbench.tasks.spec import PROTOCOLS, LikelihoodTask, TaskSpec, load_registry, split_names

if TYPE_CHECKING:
    from unlearnbench.evaluation.workers import Team

log = logging.getLogger("unlearnbench")


def evaluate(
    model: str | Path | Model,
    tasks: str | Sequence[str],
    quant: str | Sequence[str] = "none",
    *,
    output: str | Path = "results",
    include_path: Sequence[str | Path] = (),
    data_dir: str | Path | None = None,
    allow_data_drift: bool = False,
    limit: int | float | None = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    device: str | None = None,
    dtype: str = "auto",
    quant_kernel: str = "auto",
    calibration: str = "generic",
    calibration_samples: int = 96,
    protocol: str = "muse",
    reference: str | Path | None = None,
    ppl_lower: bool = False,
    gen_kwargs: Mapping[str, object] | None = None,
    apply_chat_template: bool = False,
    confirm_run_unsafe_code: bool = False,
    revision: str | None = None,
    base: str | None = None,
    adapter: Literal["merge", "keep"] = "merge",
    allow_adapter_base: bool = False,
    trust_remote_code: bool = False,
    allow_pickle: bool = False,
    fresh: bool = False,
    truncate_left: bool = False,
    threads: int | None = None,
    attention: Attention = "auto",
    compiled: bool = False,
    explain: bool = False,
    backend: Literal["hf", "vllm"] = "hf",
    team: Team | None = None,
    progress: bool = False,
) -> list[RunResult]:
    """Evaluate a checkpoint on tasks at one or more precisions, one after another.

    The options are the command line's, under the same names (``unlearnbench --help``). ``model``
    is a folder, a ``.gguf`` file, a hub id, or any object that implements ``Model``, which has its
    precision already. ``data_dir`` defaults to the environment's ``UNLEARNBENCH_DATA``. A task that
    is not ours is lm-eval's, as is ``lm_eval:NAME``; they run after ours.

    Returns:
        One result a precision, in the order asked for; each also stands in its run folder,
        ``output/<model>/<precision>/``, written after every task. A task that already stands there
        is not computed again, and one that was interrupted goes on (docs/durability.md); with
        ``fresh`` an earlier run is set aside instead.

    Raises:
        EvaluationError: one or more of several tasks or precisions failed. The others are finished.
        UnlearnbenchError: bad input, or a measurement that cannot be trusted. What was finished
            before is in the run folders.
    """
    from unlearnbench.checkpoints.source import LoadOptions
    from unlearnbench.util.explain import show_explanations
    from unlearnbench.util.process import set_threads

    _check_amounts(limit, batch_size, threads, seed)
    _check_choices(dtype, protocol, quant_kernel, attention)
    specs, theirs = _find_tasks(tasks, include_path)
    require_writable(Path(output))
    root = data_dir if data_dir is not None else os.environ.get("UNLEARNBENCH_DATA") or None
    options = DataOptions(Path(root) if root is not None else None, allow_data_drift)
    given = dict(gen_kwargs or {})
    plans = override_decoding([make_plan(spec, options, limit) for spec in specs], given)
    job = Job(
        plans=tuple(plans),
        output=Path(output),
        protocol=protocol,
        seed=seed,
        limit=limit,
        ppl_lower=ppl_lower,
        batch_size=None if batch_size == "auto" else batch_size,
        reference=_open_reference(reference),
        progress=progress,
        fresh=fresh,
        gen_kwargs=gen_kwargs_text(given),
        truncate_left=truncate_left,
        backend=backend,
        processes=1 if team is None else team.size,
        attention=attention,
        compiled=compiled,
    )
    if theirs:
        ask = Ask(
            limit, apply_chat_template, given, confirm_run_unsafe_code, job.batch_size, progress
        )
        job = replace(job, suite=open_suite(theirs, include_path, root, ask, bool(specs)))
    if reference is not None and not any(isinstance(spec, LikelihoodTask) for spec in specs):
        log.warning("--reference moves only PrivLeak, and none of these tasks has it")
    if not isinstance(model, (str, Path)):
        if apply_chat_template:
            raise OptionError(
                "a Model object has no tokenizer to template its prompts; give a path"
            )
        if backend != "hf" or team is not None or attention != "auto" or compiled:
            raise OptionError(
                "a Model object runs as it is; leave attention, compiled, backend and team out"
            )
        return _evaluate_given(job, model, quant)
    load = LoadOptions(
        revision, base, adapter, allow_adapter_base, trust_remote_code, allow_pickle, truncate_left
    )
    set_threads(threads)
    show_explanations(explain)
    how = Asked(
        *(dtype, device, quant_kernel, calibration, calibration_samples, backend, team),
        *(attention, compiled),
    )
    return evaluate_path(job, str(model), quant, load, how, apply_chat_template)


def _check_amounts(
    limit: int | float | None, batch_size: object, threads: int | None, seed: int
) -> None:
    if limit is not None and not limit > 0:
        raise OptionError(
            f"--limit {limit} leaves no sample; use 1 or more, a share below 1, or leave it out"
        )
    if limit is not None and limit > 1 and limit != int(limit):
        raise OptionError(f"--limit {limit}: use a whole number, or a share below 1")
    if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size > 0):
        raise OptionError(f"--batch-size {batch_size}: use 'auto' or a whole number above 0")
    if threads is not None and threads < 1:
        raise OptionError(f"--threads {threads}: use 1 or more")
    if seed < 0:
        raise OptionError(f"--seed {seed}: use 0 or more")


def _check_choices(dtype: str, protocol: str, quant_kernel: str, attention: str) -> None:
    if dtype not in ("auto", "fp32", "bf16", "fp16"):
        raise OptionError(f"--dtype {dtype}: use auto, fp32, bf16 or fp16")
    if protocol not in PROTOCOLS:
        raise OptionError(f"--protocol {protocol}: use {' or '.join(PROTOCOLS)}")
    if quant_kernel not in ("auto", "native", "dequantized"):
        raise OptionError(f"--quant-kernel {quant_kernel}: use auto, native or dequantized")
    if attention not in get_args(Attention):
        raise OptionError(f"--attention {attention}: use {', '.join(get_args(Attention))}")


def _find_tasks(
    tasks: str | Sequence[str], include_path: Sequence[str | Path]
) -> tuple[Sequence[TaskSpec], Sequence[str]]:
    """Our tasks, and the names of lm-eval's."""
    registry = load_registry(include_path)
    wanted = split_wanted(split_names(tasks), registry, include_path)
    for name in wanted.both:
        log.info("%s is a task of lm-eval's too; ours is run, lm_eval:%s is theirs", name, name)
    if wanted.unknown and packaged_tasks() is None:
        log.warning("lm-eval is not installed, so its tasks are not known; %s", INSTALL)
    specs = registry.resolve(wanted.ours) if wanted.ours or not wanted.theirs else ()
    for spec in specs:
        if spec.superseded_by:
            log.warning("%s is superseded by %s", spec.task, spec.superseded_by)
    return specs, wanted.theirs


def _open_reference(reference: str | Path | None) -> RetrainedRun | Literal["stated"] | None:
    if reference is None or reference == "stated":
        return "stated" if reference == "stated" else None
    return open_reference(Path(reference))


def _evaluate_given(job: Job, model: Model, precision: str | Sequence[str]) -> list[RunResult]:
    if split_names(precision) != ["none"]:
        raise OptionError("a Model object has its precision already; leave quant out")
    if job.truncate_left:
        raise OptionError("a Model object cuts its prompts itself; leave truncate_left out")
    settings = job.settings(model.dtype, model.device)
    failures = job.failures(1)
    with ExitStack() as locks:
        run, todo = prepare(job, model.checkpoint, model.config, model.condition, settings, locks)
        result = run_tasks(run, todo, lambda: model, failures)
    return all_results([result], failures)
