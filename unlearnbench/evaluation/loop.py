"""A checkpoint under every condition that was asked for: each is loaded, run and let go."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import Calibration, ConditionSpec
from unlearnbench.errors import OptionError
from unlearnbench.evaluation.failures import Failures
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.run import Job, Run, prepare, run_tasks
from unlearnbench.models.base import Model
from unlearnbench.results import RunResult
from unlearnbench.tasks.overrides import chat_samples, template_sha256
from unlearnbench.tasks.registry import split_names
from unlearnbench.tasks.samples import TaskSamples
from unlearnbench.util.quiet import plain_errors

if TYPE_CHECKING:
    from unlearnbench.conditions.load import Prepared
    from unlearnbench.evaluation.workers import Team

log = logging.getLogger("unlearnbench")


def all_results(found: Sequence[RunResult | None], failures: Failures) -> list[RunResult]:
    """Those that there are.

    Raises:
        EvaluationError: some of several tasks or conditions failed.
    """
    results = [result for result in found if result is not None]
    failures.raise_if_any(results)
    return results


def evaluate_path(
    job: Job,
    path: str,
    names: str | Sequence[str],
    asked: Options,
    team: Team | None,
) -> list[RunResult]:
    """Evaluate what ``path`` names under each of the conditions ``names``.

    Raises: as ``evaluate``.
    """
    from unlearnbench.conditions.load import prepare_all

    specs = conditions.resolve(split_names(names))
    if asked.device == "auto" and team is not None:
        raise OptionError(
            "--device auto spreads one model over all GPUs, and each process of this launch has a "
            "model of its own; use --device cuda, or one process"
        )
    all_prepared = prepare_all(path, specs, asked, _calibration(job, specs, asked))
    if asked.backend == "vllm":
        all_prepared = _for_vllm(all_prepared, asked, team)
    source = all_prepared[0].source
    if asked.apply_chat_template:
        sha256 = template_sha256(source.tokenizer)
        plans = chat_samples(job.plans, source.tokenizer)
        job = replace(job, plans=tuple(plans), chat_template_sha256=sha256)
    config = source.config.to_dict()
    failures = job.failures(len(specs))
    with ExitStack() as locks:
        runs = []
        for prepared in all_prepared:  # every conflict is found before the first model is loaded
            settings = job.settings(prepared.dtype, prepared.plan.device)
            runs.append(
                prepare(job, source.checkpoint, config, prepared.condition, settings, locks)
            )
        found = [
            _run_condition(prepared, path, asked, team, run, todo, failures)
            for prepared, (run, todo) in zip(all_prepared, runs, strict=True)
        ]
    return all_results(found, failures)


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
    return [prepare(p.source, p.spec, dense, p.plan.calibration) for p in all_prepared]


def _calibration(job: Job, specs: Sequence[ConditionSpec], asked: Options) -> Calibration | None:
    if any(spec.calibrated for spec in specs):
        from unlearnbench.conditions.quantize.calibration import pick_calibration

        return pick_calibration(asked.calibration, job.plans, asked.calibration_samples, job.seed)
    if asked.calibration != "generic":
        log.warning("--calibration moves only gptq and awq, and none of these conditions is one")
    return None


def _run_condition(
    prepared: Prepared,
    path: str,
    asked: Options,
    team: Team | None,
    run: Run,
    todo: list[TaskSamples],
    failures: Failures,
) -> RunResult | None:
    batch_size = run.job.batch_size

    def load() -> Model:
        """By every process, and on the engine asked for."""
        if team is not None:
            from unlearnbench.evaluation.workers import Loading

            options = asked.updated({"device": prepared.plan.device})
            order = Loading(path, options, prepared.spec, batch_size)
            return team.load(order, lambda: prepared.load(batch_size))
        if asked.backend == "vllm":
            from unlearnbench.models.vllm import open_vllm

            return open_vllm(prepared.load(batch_size))
        return prepared.load(batch_size)

    try:
        with plain_errors():
            return run_tasks(run, todo, load, failures)
    finally:
        gc.collect()  # before the next condition takes its memory
