"""A checkpoint under every condition that was asked for: each is loaded, run and let go."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import Calibration, ConditionSpec
from unlearnbench.errors import OptionError
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.run import Evaluation, Run
from unlearnbench.evaluation.workers import Loading, Team
from unlearnbench.models.base import Model
from unlearnbench.results import RunResult
from unlearnbench.tasks.overrides import chat_samples, template_sha256
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.quiet import plain_errors

if TYPE_CHECKING:
    from unlearnbench.conditions.load import Prepared

log = logging.getLogger("unlearnbench")


def evaluate_path(
    evaluation: Evaluation, path: str, names: str | Sequence[str], team: Team | None
) -> list[RunResult]:
    """Evaluate what ``path`` names under each of the conditions ``names``.

    Raises: as ``evaluate``.
    """
    from unlearnbench.conditions.load import prepare_all

    asked, specs = evaluation.options, conditions.resolve(split_names(names))
    all_prepared = prepare_all(path, specs, asked, _calibration(evaluation, specs))
    if all_prepared[0].plan.device == "auto" and team is not None:
        raise OptionError(
            "--device auto spreads one model over all GPUs, and each process of this launch has a "
            "model of its own; use --device cuda, or one process"
        )
    if asked.backend == "vllm":
        all_prepared = _for_vllm(all_prepared, asked, team)
    source = all_prepared[0].source
    if asked.apply_chat_template:
        sha256 = template_sha256(source.tokenizer)
        tasks = chat_samples(evaluation.tasks, source.tokenizer)
        evaluation = replace(evaluation, tasks=tuple(tasks), chat_template_sha256=sha256)
    config = source.config.to_dict()
    failures, results, runs = evaluation.failures(len(specs)), [], []
    with ExitStack() as locks:
        for prepared in all_prepared:  # every conflict is found before the first model is loaded
            device = prepared.plan.device
            settings = evaluation.settings(prepared.dtype, device)
            run = Run(evaluation, source.checkpoint, config, prepared.condition, settings)
            run.open(locks)
            order = Loading(
                path, asked.updated({"device": device}), prepared.spec, evaluation.batch_size
            )
            runs.append((run, partial(_load, prepared, order, asked.backend, team)))
        for run, load in runs:
            try:
                with plain_errors():
                    results.append(run.measure(load, failures))
            finally:
                gc.collect()  # before the next condition takes its memory
    return failures.raise_if_any(results)


def _load(prepared: Prepared, order: Loading, backend: str, team: Team | None) -> Model:
    """Under one condition, by every process and on the engine asked for."""
    load = partial(prepared.load, order.batch_size)
    if team is not None:
        return team.load(order, load)
    if backend == "vllm":
        from unlearnbench.models.vllm import open_vllm

        return open_vllm(load())
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
    return [prepare(p.source, p.spec, dense, p.plan.calibration) for p in all_prepared]


def _calibration(evaluation: Evaluation, specs: Sequence[ConditionSpec]) -> Calibration | None:
    asked = evaluation.options
    if any(spec.calibrated for spec in specs):
        from unlearnbench.conditions.quantize.calibration import pick_calibration

        return pick_calibration(
            asked.calibration, evaluation.tasks, asked.calibration_samples, asked.seed
        )
    if asked.calibration != "generic":
        log.warning("--calibration moves only gptq and awq, and none of these conditions is one")
    return None
