"""The main job: a checkpoint, precisions and tasks go in; run folders and results come out."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unlearnbench.errors import OptionError
from unlearnbench.evaluation.loop import all_results, evaluate_path
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.reference import RetrainedRun, open_reference
from unlearnbench.evaluation.run import Job, prepare, run_tasks
from unlearnbench.lm_eval import INSTALL, PREFIX
from unlearnbench.lm_eval.opening import Ask, open_suite
from unlearnbench.lm_eval.their_tasks import is_named
from unlearnbench.models.base import Model
from unlearnbench.results import RunResult
from unlearnbench.runs.folder import require_writable
from unlearnbench.tasks.overrides import (
    gen_kwargs_text,
    override_decoding,
)
from unlearnbench.tasks.registry import load_registry, split_names
from unlearnbench.tasks.rows import DataOptions
from unlearnbench.tasks.samples import load_samples
from unlearnbench.tasks.spec import TaskSpec

if TYPE_CHECKING:
    from unlearnbench.evaluation.workers import Team

log = logging.getLogger("unlearnbench")


def evaluate(
    model: str | Path | Model,
    tasks: str | Sequence[str],
    conditions: str | Sequence[str] = "none",
    options: Options | None = None,
    *,
    team: Team | None = None,
    **fields: Any,
) -> list[RunResult]:
    """Evaluate a checkpoint on tasks under one or more conditions, one after another.

    ``model`` is a folder, a ``.gguf`` file, a hub id, or any object that implements ``Model``,
    which has its condition already. ``options`` are the command line's, under the same names
    (``unlearnbench --help``); ``fields`` are single ones in place of those of ``options``, as
    ``evaluate(model, "news", "none,4bit", limit=16)``. A task that is not ours is lm-eval's, as is
    ``lm_eval:NAME``; they run after ours. ``team`` is the other processes of a launch.

    Returns:
        One result a condition, in the order asked for; each also stands in its run folder,
        ``output/<model>/<condition>/``, written after every task. A task that already stands there
        is not computed again, and one that was interrupted goes on (docs/durability.md); with
        ``fresh`` an earlier run is set aside instead.

    Raises:
        EvaluationError: one or more of several tasks or conditions failed. The others are finished.
        UnlearnbenchError: bad input, or a measurement that cannot be trusted. What was finished
            before is in the run folders.
    """
    from unlearnbench.util.explain import show_explanations
    from unlearnbench.util.process import set_threads

    if "quant" in fields:
        log.warning("evaluate(quant=...) is called conditions now; the old name goes with 0.2")
        conditions = fields.pop("quant")
    asked = (options or Options()).updated(fields)
    specs, theirs = find_tasks(tasks, asked.include_path)
    for spec in specs:
        if spec.superseded_by:
            log.warning("%s is superseded by %s", spec.task, spec.superseded_by)
    require_writable(asked.output)
    root = asked.data_dir or os.environ.get("UNLEARNBENCH_DATA") or None
    rows = DataOptions(Path(root) if root is not None else None, asked.allow_data_drift)
    plans = override_decoding(
        [load_samples(spec, rows, asked.limit) for spec in specs], asked.gen_kwargs
    )
    batch_size = None if asked.batch_size == "auto" else asked.batch_size
    job = Job(
        plans=tuple(plans),
        output=asked.output,
        protocol=asked.protocol,
        seed=asked.seed,
        limit=asked.limit,
        ppl_lower=asked.ppl_lower,
        batch_size=batch_size,
        reference=_open_reference(asked.reference),
        progress=asked.progress,
        fresh=asked.fresh,
        gen_kwargs=gen_kwargs_text(asked.gen_kwargs),
        truncate_left=asked.truncate_left,
        backend=asked.backend,
        processes=1 if team is None else team.size,
    )
    if theirs:
        ask = Ask(
            asked.limit,
            asked.apply_chat_template,
            asked.gen_kwargs,
            asked.confirm_run_unsafe_code,
            batch_size,
            asked.progress,
        )
        job = replace(job, suite=open_suite(theirs, asked.include_path, root, ask, bool(specs)))
    if asked.reference is not None and not any(s.needs_reference for s in specs):
        log.warning("--reference moves only PrivLeak, and none of these tasks has it")
    if not isinstance(model, (str, Path)):
        return _evaluate_given(job, model, conditions, asked, team)
    set_threads(asked.threads)
    show_explanations(asked.explain)
    return evaluate_path(job, str(model), conditions, asked, team)


def find_tasks(
    tasks: str | Sequence[str], include_path: Sequence[str | Path]
) -> tuple[Sequence[TaskSpec], Sequence[str]]:
    """Our tasks, and the names that are lm-eval's: those of ``lm_eval:NAME``, and those that are
    none of ours and stand in its task files; its own index has the last word.

    Raises:
        TaskError: nothing was asked for, or a name is of neither; near names of ours are told.
    """
    registry = load_registry(include_path)
    words = split_names(tasks)
    theirs = [word for word in words if word.startswith(PREFIX)]
    strange = [word for word in words if word not in theirs and not registry.knows(word)]
    if strange and importlib.util.find_spec("lm_eval") is None:
        log.warning("lm-eval is not installed, so its tasks are not known; %s", INSTALL)
    theirs += [word for word in strange if is_named(word, include_path)]
    ours = [word for word in words if word not in theirs]
    specs = registry.resolve(ours) if ours or not theirs else ()
    return specs, tuple(dict.fromkeys(word.removeprefix(PREFIX) for word in theirs))


def _open_reference(reference: str | Path | None) -> RetrainedRun | Literal["stated"] | None:
    if reference is None or reference == "stated":
        return "stated" if reference == "stated" else None
    return open_reference(Path(reference))


def _evaluate_given(
    job: Job, model: Model, conditions: str | Sequence[str], asked: Options, team: Team | None
) -> list[RunResult]:
    if asked.apply_chat_template:
        raise OptionError("a Model object has no tokenizer to template its prompts; give a path")
    if asked.backend != "hf" or team is not None:
        raise OptionError("a Model object runs as it is; leave backend and team out")
    if split_names(conditions) != ["none"]:
        raise OptionError("a Model object has its precision already; leave conditions out")
    if job.truncate_left:
        raise OptionError("a Model object cuts its prompts itself; leave truncate_left out")
    settings = job.settings(model.dtype, model.device)
    failures = job.failures(1)
    with ExitStack() as locks:
        run, todo = prepare(job, model.checkpoint, model.config, model.condition, settings, locks)
        result = run_tasks(run, todo, lambda: model, failures)
    return all_results([result], failures)
