"""A checkpoint at every precision that was asked for: each is loaded, run and let go."""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unlearnbench.conditions import quantize
from unlearnbench.conditions.base import Calibration, How, PrecisionSpec, pick_kernel
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
    from unlearnbench.checkpoints.source import Source
    from unlearnbench.evaluation.workers import Team
    from unlearnbench.models.hf import HFModel

log = logging.getLogger("unlearnbench")


def all_results(found: Sequence[RunResult | None], failures: Failures) -> list[RunResult]:
    """Those that there are.

    Raises:
        EvaluationError: some of several tasks or precisions failed.
    """
    results = [result for result in found if result is not None]
    failures.raise_if_any(results)
    return results


def evaluate_path(
    job: Job,
    path: str,
    precisions: str | Sequence[str],
    asked: Options,
    team: Team | None,
) -> list[RunResult]:
    """Evaluate what ``path`` names at each of ``precisions``.

    Raises: as ``evaluate``.
    """
    from unlearnbench.checkpoints.source import open_source
    from unlearnbench.conditions import load as loading

    specs = quantize.resolve(split_names(precisions))
    device = loading.pick_device(asked.device)
    if device == "auto" and team is not None:
        raise OptionError(
            "--device auto spreads one model over all GPUs, and each process of this launch has a "
            "model of its own; use --device cuda, or one process"
        )
    for spec in specs:
        loading.require_available(spec, device)
        pick_kernel(asked.quant_kernel, spec, device)
    calibration = _calibration(job, specs, asked)
    source = open_source(path, asked, keep=len(specs) > 1)
    loading.require_loadable(source)
    if asked.apply_chat_template:
        sha256 = template_sha256(source.tokenizer)
        plans = chat_samples(job.plans, source.tokenizer)
        job = replace(job, plans=tuple(plans), chat_template_sha256=sha256)
    kernel = asked.quant_kernel
    if asked.backend == "vllm":
        _require_vllm(source, specs, asked, team)
        kernel = "dequantized"
    config = source.config.to_dict()
    failures = job.failures(len(specs))
    prepared = []
    with ExitStack() as locks:
        for spec in specs:  # every conflict is found before the first model is loaded
            loading.require_precision(source, spec)
            dtype = loading.pick_dtype(asked.dtype, spec, source.own_dtype, device)
            how = loading.make_how(spec, dtype, device, kernel, calibration)
            precision = loading.describe_precision(source, spec, how)
            settings = job.settings(dtype, device)
            run, todo = prepare(job, source.checkpoint, config, precision, settings, locks)
            prepared.append((spec, how, run, todo))
        opened = _Opened(path, source, asked, team)
        found = [_run_precision(opened, *one, failures) for one in prepared]
    return all_results(found, failures)


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


def _calibration(job: Job, specs: Sequence[PrecisionSpec], asked: Options) -> Calibration | None:
    if any(spec.calibrated for spec in specs):
        from unlearnbench.conditions.quantize.calibration import pick_calibration

        return pick_calibration(asked.calibration, job.plans, asked.calibration_samples, job.seed)
    if asked.calibration != "generic":
        log.warning("--calibration moves only gptq and awq, and none of these precisions is one")
    return None


@dataclass(frozen=True)
class _Opened:
    """A checkpoint that is open, and by whom it is to be run."""

    path: str
    source: Source
    asked: Options
    team: Team | None

    def load(self, spec: PrecisionSpec, how: How, batch_size: int | None) -> Model:
        """At one precision, by every process and on the engine asked for."""
        from unlearnbench.conditions.load import load_model

        def load_here() -> HFModel:
            model = load_model(self.source, spec, how, batch_size)
            self.source.release()
            return model

        if self.team is not None:
            from unlearnbench.evaluation.workers import Loading

            asked = Loading(self.path, self.asked, spec, how, batch_size)
            return self.team.load(asked, load_here)
        if self.asked.backend == "vllm":
            from unlearnbench.models.vllm import open_vllm

            return open_vllm(load_here())
        return load_here()


def _run_precision(
    opened: _Opened,
    spec: PrecisionSpec,
    how: How,
    run: Run,
    todo: list[TaskSamples],
    failures: Failures,
) -> RunResult | None:
    try:
        with plain_errors():
            return run_tasks(
                run, todo, lambda: opened.load(spec, how, run.job.batch_size), failures
            )
    finally:
        gc.collect()  # before the next precision takes its memory
