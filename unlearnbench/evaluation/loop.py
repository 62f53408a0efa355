"""A checkpoint at every precision that was asked for: each is loaded, run and let go."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from unlearnbench.conditions import quantize
from unlearnbench.conditions.base import Calibration, PrecisionSpec, pick_kernel
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
    from unlearnbench.checkpoints.source import Source
    from unlearnbench.models.hf import HFModel

log = logging.getLogger("unlearnbench")


def evaluate_path(
    evaluation: Evaluation, path: str, precisions: str | Sequence[str], team: Team | None
) -> list[RunResult]:
    """Evaluate what ``path`` names at each of ``precisions``.

    Raises: as ``evaluate``.
    """
    from unlearnbench.checkpoints.source import open_source
    from unlearnbench.conditions import load as loading

    asked, specs = evaluation.options, quantize.resolve(split_names(precisions))
    device = loading.pick_device(asked.device)
    if device == "auto" and team is not None:
        raise OptionError(
            "--device auto spreads one model over all GPUs, and each process of this launch has a "
            "model of its own; use --device cuda, or one process"
        )
    for spec in specs:
        loading.require_available(spec, device)
        pick_kernel(asked.quant_kernel, spec, device)
    calibration = _calibration(evaluation, specs)
    source = open_source(path, asked, keep=len(specs) > 1)
    loading.require_loadable(source)
    if asked.apply_chat_template:
        sha256 = template_sha256(source.tokenizer)
        tasks = chat_samples(evaluation.tasks, source.tokenizer)
        evaluation = replace(evaluation, tasks=tuple(tasks), chat_template_sha256=sha256)
    kernel = asked.quant_kernel
    if asked.backend == "vllm":
        _require_vllm(source, specs, asked, team)
        kernel = "dequantized"
    config = source.config.to_dict()
    failures, results = evaluation.failures(len(specs)), []
    prepared = []
    with ExitStack() as locks:
        for spec in specs:  # every conflict is found before the first model is loaded
            loading.require_precision(source, spec)
            dtype = loading.pick_dtype(asked.dtype, spec, source.own_dtype, device)
            how = loading.make_how(spec, dtype, device, kernel, calibration)
            condition = loading.describe_precision(source, spec, how)
            settings = evaluation.settings(dtype, device)
            run = Run(evaluation, source.checkpoint, config, condition, settings)
            run.open(locks)
            loader = Loading(path, asked, spec, how, evaluation.batch_size)
            prepared.append((run, partial(_load, source, loader, asked.backend, team)))
        for run, load in prepared:
            try:
                with plain_errors():
                    results.append(run.measure(load, failures))
            finally:
                gc.collect()  # before the next condition takes its memory
    return failures.raise_if_any(results)


def _load(source: Source, loader: Loading, backend: str, team: Team | None) -> Model:
    """Under one condition, by every process and on the engine asked for."""
    load = partial(_load_here, source, loader)
    if team is not None:
        return team.load(loader, load)
    if backend == "vllm":
        from unlearnbench.models.vllm import open_vllm

        return open_vllm(load())
    return load()


def _load_here(source: Source, loader: Loading) -> HFModel:
    from unlearnbench.conditions.load import load_model

    model = load_model(source, loader.spec, loader.how, loader.batch_size)
    source.release()
    return model


def _require_vllm(
    source: Source,
    specs: Sequence[PrecisionSpec],
    asked: Options,
    team: Team | None,
) -> None:
    from unlearnbench.models.vllm import require_vllm

    if team is not None:
        raise OptionError("--backend vllm runs in one process; it spreads its work itself")
    kernels = {spec.name: spec.kernels for spec in specs}
    require_vllm(source, kernels, asked.quant_kernel)


def _calibration(evaluation: Evaluation, specs: Sequence[PrecisionSpec]) -> Calibration | None:
    asked = evaluation.options
    if any(spec.calibrated for spec in specs):
        from unlearnbench.conditions.quantize.calibration import pick_calibration

        return pick_calibration(
            asked.calibration, evaluation.tasks, asked.calibration_samples, asked.seed
        )
    if asked.calibration != "generic":
        log.warning("--calibration moves only gptq and awq, and none of these precisions is one")
    return None
