"""The main job: a checkpoint, tasks and conditions go in; run folders and results come out."""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unlearnbench.checkpoints.options import ASKING
from unlearnbench.conditions import resolve
from unlearnbench.conditions.base import ConditionSpec, Materials, bounded
from unlearnbench.errors import DataError, OptionError
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.reference import open_reference
from unlearnbench.evaluation.run import Evaluation, Run
from unlearnbench.evaluation.workers import Loading, Team
from unlearnbench.lm_eval import INSTALL, PREFIX
from unlearnbench.lm_eval.suite import Suite
from unlearnbench.lm_eval.their_tasks import data_folder, load_tasks, named
from unlearnbench.models.base import Model
from unlearnbench.results import RunResult
from unlearnbench.runs.folder import require_writable
from unlearnbench.tasks.chat import DATE, chat_options, chat_samples, chat_settings
from unlearnbench.tasks.held import FORM, hold_back
from unlearnbench.tasks.kinds.generate import place_blanks
from unlearnbench.tasks.overrides import override_decoding
from unlearnbench.tasks.registry import builtin_task_dir, load_registry, split_names
from unlearnbench.tasks.rows import DataOptions, load_samples
from unlearnbench.tasks.spec import TaskSpec
from unlearnbench.util.process import plain_errors, set_threads, show_explanations

if TYPE_CHECKING:
    from unlearnbench.conditions.load import Prepared

R = TypeVar("R", bound=Run)
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
    if "quant" in fields:
        log.warning("evaluate(quant=...) is called conditions now; the old name goes with 0.2")
        conditions = fields.pop("quant")
    evaluation = plan(tasks, (options or Options()).updated(fields), team)
    if not isinstance(model, (str, Path)):
        return _evaluate_given(evaluation, model, conditions)
    with ExitStack() as locks:
        runs = open_runs(evaluation, str(model), conditions, locks, Run, team)
        failures, results = evaluation.failures(len(runs)), []
        for run, load in runs:
            try:
                with plain_errors():
                    results.append(run.measure(load, failures))
            finally:
                gc.collect()  # before the next condition takes its memory
    return failures.raise_if_any(results)


def plan(tasks: str | Sequence[str], asked: Options, team: Team | None = None) -> Evaluation:
    """What all conditions of a command have in common. Raises: as ``evaluate``."""
    specs, theirs = find_tasks(tasks, asked.include_path)
    require_writable(asked.output)
    root = asked.data_dir or os.environ.get("UNLEARNBENCH_DATA") or None
    rows = DataOptions(Path(root) if root is not None else None, asked.allow_data_drift)
    samples = [load_samples(spec, rows, asked.limit) for spec in specs]
    if re.fullmatch(FORM, asked.relearn_on):
        samples = hold_back(samples, asked.relearn_on, asked.seed)
    if asked.gen_kwargs:
        samples = override_decoding(samples, asked.gen_kwargs)
    evaluation = Evaluation(
        tuple(samples),
        asked,
        open_reference(asked.reference) if asked.reference is not None else None,
        _open_suite(theirs, root, asked, bool(specs)) if theirs else None,
        1 if team is None else team.size,
    )
    if asked.reference is not None and not any(spec.needs_reference for spec in specs):
        log.warning("--reference moves only PrivLeak, and none of these tasks has it")
    return evaluation


def find_tasks(
    tasks: str | Sequence[str], include_path: Sequence[str | Path]
) -> tuple[Sequence[TaskSpec], Sequence[str]]:
    """Our tasks, and lm-eval's names: ``lm_eval:NAME``, and those that are none of ours and stand
    in its task files. Its own index has the last word.

    Raises:
        TaskError: nothing was asked for, or a name is of neither; near names of ours are told.
    """
    registry = load_registry(include_path)
    words = split_names(tasks)
    theirs = [word for word in words if word.startswith(PREFIX)]
    strange = [word for word in words if word not in theirs and not registry.knows(word)]
    if strange and importlib.util.find_spec("lm_eval") is None:
        log.warning("lm-eval is not installed, so its tasks are not known; %s", INSTALL)
    shipped = builtin_task_dir()  # none of its names is lm-eval's, which a test holds
    added = [w for w in words if w in registry.files and registry.files[w].parent != shipped]
    asked = [*strange, *added]
    defined = named(asked, include_path, registry.files.values()) if asked else set()
    for word in added:
        if word in defined and PREFIX + word not in theirs:
            log.info(
                "%s is a task of lm-eval's too; ours is run, %s is theirs", word, PREFIX + word
            )
    theirs += [word for word in strange if word in defined]
    ours = [word for word in words if word not in theirs]
    specs = registry.resolve(ours) if ours or not theirs else ()
    for spec in specs:
        if spec.superseded_by:
            log.warning("%s is superseded by %s", spec.task, spec.superseded_by)
    return specs, tuple(dict.fromkeys(word.removeprefix(PREFIX) for word in theirs))


def _open_suite(
    names: Sequence[str], root: str | Path | None, asked: Options, others: bool
) -> Suite:
    """lm-eval's tasks with their data; one that cannot be loaded does not keep the ``others``.

    Raises:
        DataError: nothing could be loaded, and there is nothing else to run.
    """
    with data_folder(root):
        loaded = load_tasks(names, asked.include_path, asked.confirm_run_unsafe_code)
    failed = list(loaded.failed.values())
    if failed and not loaded.tasks and not others:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise DataError(failed[0] + more)
    for line in failed:
        log.warning("%s; the other tasks are run first", line)
    return Suite(
        loaded,
        limit=asked.limit,
        chat=_chat(asked),
        gen_kwargs=asked.gen_kwargs,
        trust=asked.confirm_run_unsafe_code,
        batch_size=None if asked.batch_size == "auto" else asked.batch_size,
        progress=asked.progress,
    )


def open_runs(
    evaluation: Evaluation,
    path: str,
    names: str | Sequence[str],
    locks: ExitStack,
    make: Callable[..., R],
    team: Team | None = None,
) -> list[tuple[R, Callable[[], Model]]]:
    """Each condition's run, and what loads its model. Raises: as ``evaluate``, before that."""
    from unlearnbench.conditions.load import prepare_all

    asked, runs = evaluation.options, list[tuple[R, Callable[[], Model]]]()
    set_threads(asked.threads)
    show_explanations(asked.explain)
    specs = bounded(resolve(split_names(names)), asked.budget)
    if asked.deployed:
        from unlearnbench.conditions import deployed

        specs = deployed.beside(specs, asked)
    all_prepared = prepare_all(path, specs, asked, _materials(evaluation, specs))
    if all_prepared[0].plan.device == "auto" and team is not None:
        raise OptionError(
            "--device auto spreads one model over all GPUs, and each process of this launch has a "
            "model of its own; use --device cuda, or one process"
        )
    if asked.backend == "vllm":
        all_prepared = _for_vllm(all_prepared, asked, team)
    source = all_prepared[0].source
    evaluation = _with_blanks(evaluation, source.tokenizer)
    if (told := _chat(asked)) is not None:
        tasks = chat_samples(evaluation.tasks, source.tokenizer, told)
        chat = chat_settings(source.tokenizer, told)
        evaluation = replace(evaluation, tasks=tuple(tasks), chat=chat)
    evaluation = evaluation.with_drafts(len(specs))
    config = source.config.to_dict()
    for prepared in all_prepared:
        device = prepared.plan.device
        settings = evaluation.settings(prepared.dtype, device)
        own = replace(evaluation, tasks=prepared.put(evaluation.tasks))
        run = make(own, source.checkpoint, config, prepared.condition, settings)
        run.open(locks)
        own_options = asked.updated({"device": device})
        order = Loading(path, own_options, prepared.spec, evaluation.batch_size)
        runs.append((run, partial(_load, prepared, order, asked.backend, team)))
    return runs


def _chat(asked: Options) -> dict[str, Any] | None:
    """What a chat template is told; None where prompts go through none."""
    if asked.apply_chat_template:
        return chat_options(asked.date_string, asked.enable_thinking, asked.think_end_token)
    if asked.enable_thinking or asked.date_string != DATE:
        raise OptionError("--enable-thinking and --date-string need --apply-chat-template")
    return None


def _with_blanks(evaluation: Evaluation, tokenizer: Any) -> Evaluation:
    asked = evaluation.options
    tasks = place_blanks(evaluation.tasks, asked.answer_blank, tokenizer, asked.limit)
    return replace(evaluation, tasks=tasks)


def _load(prepared: Prepared, order: Loading, backend: str, team: Team | None) -> Model:
    """Under one condition, by every process and on the engine asked for."""
    load = partial(prepared.load, order.batch_size)
    if team is not None:
        return team.load(order, load)
    if backend == "vllm":
        from unlearnbench.models.vllm import open_vllm

        deployed = prepared.plan.materials.deployed.get(prepared.spec.name)
        return open_vllm(load(), None if deployed is None else deployed.packed)
    return load()


def _for_vllm(
    all_prepared: Sequence[Prepared], asked: Options, team: Team | None
) -> list[Prepared]:
    """The same with plain weights, which vLLM computes with."""
    from unlearnbench.conditions.load import prepare
    from unlearnbench.models.vllm import require_vllm

    if team is not None:
        raise OptionError("--backend vllm runs in one process; it spreads its work itself")
    kernels = {prepared.spec.name: prepared.spec.kernels for prepared in all_prepared}
    require_vllm(all_prepared[0].source, kernels, asked.quant_kernel)
    dense = asked.updated({"quant_kernel": "dequantized"})
    return [prepare(p.source, p.spec, dense, p.plan.materials) for p in all_prepared]


def _materials(evaluation: Evaluation, specs: Sequence[ConditionSpec]) -> Materials:
    asked = evaluation.options
    if any(spec.calibrated or spec.learns for spec in specs):
        from unlearnbench.conditions.materials import gather

        if asked.apply_chat_template and any(spec.learns for spec in specs):
            raise OptionError("relearning teaches plain prompts; leave --apply-chat-template out")
        return gather(specs, asked, evaluation.tasks, asked.seed, asked.answer_blank)
    if asked.calibration != "generic":
        log.warning("--calibration moves nothing: none of these conditions looks at texts")
    return Materials()


def _evaluate_given(
    evaluation: Evaluation, model: Model, conditions: str | Sequence[str]
) -> list[RunResult]:
    asked = evaluation.options
    if _chat(asked) is not None:
        raise OptionError("a Model object has no tokenizer to template its prompts; give a path")
    if asked.backend != "hf" or evaluation.processes > 1:
        raise OptionError("a Model object runs as it is; leave backend and team out")
    if split_names(conditions) != ["none"]:
        raise OptionError("a Model object has its precision already; leave conditions out")
    for name in sorted(ASKING):
        if getattr(asked, name) != Options.model_fields[name].default:
            raise OptionError(f"a Model object reads its prompts itself; leave {name} out")
    evaluation = _with_blanks(evaluation, getattr(model, "tokenizer", None))
    failures = evaluation.failures(1)
    settings = evaluation.settings(model.dtype, model.device)
    run = Run(evaluation, model.checkpoint, model.config, model.condition, settings)
    with ExitStack() as locks:
        run.open(locks)
        result = run.measure(lambda: model, failures)
    return failures.raise_if_any([result])
