"""From what ``--model`` names to a model under a condition, the one way that every command takes:
``prepare`` settles everything that can be refused, and ``Prepared.load`` reads the weights.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.checkpoint import DTYPES, CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.find import ENSEMBLE_FILE, PAIR_FILE
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import EnsembleSource, Source
from unlearnbench.checkpoints.tokenizer import thought_end
from unlearnbench.conditions.base import (
    ConditionSpec,
    Kernel,
    LoadPlan,
    Materials,
    file_of,
    find_condition,
)
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.conditions.proof import join_proofs
from unlearnbench.errors import OptionError, PrecisionError
from unlearnbench.methods import combine_rule
from unlearnbench.models.hf import HFModel
from unlearnbench.results import DTYPE_BITS, FULL, Condition, ConditionOptions, Proof
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.util.process import explain, explain_loaded

if TYPE_CHECKING:
    from unlearnbench.conditions.elsewhere.files import Deployed

# Backends whose layers are made where accelerate puts them.
_SPREAD = ("torch", "bitsandbytes", "unlearnbench", "gguf")

# Kinds of which some change no weight by right, as merge-1.
_MAY_CHANGE_NOTHING = ("stored", "merged", "relearned", "asked", "cached")
_NOTHING = Materials()

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Prepared:
    """A condition of an open checkpoint, of which nothing but loading it can still fail."""

    source: Source
    spec: ConditionSpec
    plan: LoadPlan
    dtype: str
    """The short name of the compute dtype."""
    condition: Condition
    """What a run records, all but the proof."""

    def put(self, tasks: Sequence[TaskSamples]) -> tuple[TaskSamples, ...]:
        """The tasks as the condition puts them to the model. Raises: as ``asking.put``."""
        if self.spec.asking is None:
            return tuple(tasks)
        from unlearnbench.conditions.asking import put

        found = put(self.spec.asking, tasks)
        for task in found:
            if task.asking is not None and self.spec.needs_target:
                task.asking.target = self._load_target
        return found

    def _load_target(self) -> HFModel:
        """The target as it is stored, in the same compute dtype."""
        target, plan = self.plan.materials.target, replace(self.plan, kernel=None)
        assert target is not None  # noqa: S101 - the condition's settle sees to it
        full = find_condition(FULL)
        described = _describe(target, full, plan, self.dtype)
        return Prepared(target, full, plan, self.dtype, described).load()

    def load(self, batch_size: int | None = None) -> HFModel:
        """Load the checkpoint, or several that answer together, and prove the condition.

        Raises:
            CheckpointError: the weights cannot be used.
            PrecisionError: the condition does not fit the checkpoint, or its library fails.
            NotInForceError: the condition did not take effect.
        """
        models = [self._load_part(part, batch_size) for part in self.source.parts]
        self.source.release()
        ensemble = self.source.ensemble
        if ensemble is None:
            return models[0]
        from unlearnbench.models.joined import JoinedModel

        combine = combine_rule(ensemble.method, ensemble.numbers)
        network = JoinedModel([model.network for model in models], combine)
        conditions = [model.condition for model in models]
        condition = _proven(self.condition, _join(ensemble.models, conditions))
        if condition.first is not None and not self.spec.asks:
            firsts = [part.first for part in conditions if part.first is not None]
            first = _proven(condition.first, _join(ensemble.models, firsts))
            condition = condition.model_copy(update={"first": first})
        return HFModel(network, self.source, condition, self.dtype, self.plan.device, batch_size)

    def _load_part(self, source: CheckpointSource, batch_size: int | None) -> HFModel:
        from unlearnbench.models.packable import quicken_int8

        plan = self.plan
        with warnings.catch_warnings():
            # Libraries' advice about their own internals; ours are errors, not warnings.
            warnings.simplefilter("ignore")
            spec = self.spec.of_weights or find_condition(FULL)
            model, proof, first = file_of(spec).load(spec, source, plan)
        condition = _proven(self.condition, proof)
        if condition.first is not None and first is not None:
            condition = condition.model_copy(update={"first": _proven(condition.first, first)})
        kernel = f", {plan.kernel} kernel" if plan.kernel else ""
        log.info("%s on %s, compute dtype %s%s", condition.name, plan.device, self.dtype, kernel)
        if self.dtype in ("bf16", "fp16") and plan.device == "cpu":
            log.info(
                "%s products are slow on CPUs without hardware for them; --dtype fp32 may be "
                "faster",
                self.dtype,
            )
        if proof.on_grid and condition.kind not in _MAY_CHANGE_NOTHING:
            log.warning(
                "%s changed no weight by more than a rounding error: the checkpoint already lies "
                "on that grid",
                condition.name,
            )
        model = source.finish(model)
        if plan.device == "cpu":
            quicken_int8(model)
        explain_loaded(plan.device, self.dtype, plan.kernel)
        return HFModel(model, source, condition, self.dtype, plan.device, batch_size)


def _proven(condition: Condition, proof: Proof) -> Condition:
    return condition.model_copy(update={"proof": proof})


def _join(names: Sequence[str], parts: Sequence[Condition]) -> Proof:
    known = zip(names, (part.proof for part in parts), strict=True)
    return join_proofs({name: proof for name, proof in known if proof is not None})


def find_ensemble(model: str) -> Path | None:
    """The file of the ensemble that ``model`` names; None where it names none."""
    try:
        files = [Path(model).expanduser() / name for name in (PAIR_FILE, ENSEMBLE_FILE)]
        return next((path for path in files if path.is_file()), None)
    except (OSError, RuntimeError, ValueError):  # no path at all, which opening it will say
        return None


def open_source(model: str, options: LoadOptions, keep: bool = True) -> Source:
    """Open what ``model`` names; ``keep`` as in ``CheckpointSource``."""
    path = find_ensemble(model)
    if path is None:
        return open_checkpoint(model, options, keep)
    return EnsembleSource(model, path, options, keep)


def prepare_all(
    model: str,
    specs: Sequence[ConditionSpec],
    options: KernelOptions,
    materials: Materials = _NOTHING,
) -> list[Prepared]:
    """Open what ``model`` names and prepare it under each of ``specs``. What needs no checkpoint is
    refused before one is opened, and every refusal comes before the first weight is read.

    Raises: as ``open_source`` and ``prepare``.
    """
    for spec in specs:
        _pick_device_and_kernel(spec, options)
    deployed = [spec for spec in specs if spec.kind == "deployed"]
    if deployed:
        materials = replace(materials, deployed=_open_deployed(deployed, options))
    source = open_source(model, options, keep=len(specs) > 1)
    wants = any(spec.needs_target for spec in specs) or bool(deployed)
    if wants and options.target_model is not None:
        target = _open_target(options.target_model, options, keep=len(specs) > 1)
        materials = replace(materials, target=target)
    elif options.target_model is not None:
        log.warning(
            "--target-model moves only merge-A, suffix-N-target and --deployed; there is none of "
            "them"
        )
    return [prepare(source, spec, options, materials) for spec in specs]


def _open_deployed(
    specs: Sequence[ConditionSpec], options: KernelOptions
) -> Mapping[str, Deployed]:
    from unlearnbench.conditions.elsewhere.files import open_all

    found = open_all(options.deployed, options)
    for spec in specs:
        if spec.name not in found:
            raise OptionError(
                f"{spec.name} is a checkpoint that another tool made; name it with --deployed "
                "FILE|FOLDER|ID"
            )
    return {spec.name: found[spec.name] for spec in specs}


def _open_target(target: str, options: LoadOptions, keep: bool) -> CheckpointSource:
    if find_ensemble(target) is not None:
        raise OptionError(f"--target-model {target} holds several checkpoints; give one")
    return open_checkpoint(target, options.updated({"revision": None, "base": None}), keep)


def prepare(
    source: Source,
    spec: ConditionSpec,
    options: KernelOptions,
    materials: Materials = _NOTHING,
) -> Prepared:
    """Settle how ``source`` is loaded under ``spec``. ``materials``: for conditions that need some.

    Raises:
        OptionError: the device does not exist here.
        PrecisionError: the condition cannot be made here, or not of this checkpoint, or has no such
            kernel.
    """
    import torch

    device, kernel = _pick_device_and_kernel(spec, options)
    _require_loadable(source, spec)
    _require_askable(source, options)
    if spec.calibrated and materials.calibration is None:
        raise PrecisionError(f"{spec.name} needs calibration texts; give --calibration")
    dtype = pick_dtype(options.dtype, spec, source.own_dtype, device)
    plan = LoadPlan(getattr(torch, DTYPES[dtype]), device, kernel, materials)
    return Prepared(source, spec, plan, dtype, _describe(source, spec, plan, dtype))


def _describe(source: Source, spec: ConditionSpec, plan: LoadPlan, dtype: str) -> Condition:
    """What a run records of ``spec``, all but the proof."""
    first, last = None, spec
    if spec.chain is not None:
        first = _describe(source, spec.chain[0], replace(plan, kernel=None), dtype)
        last = spec.chain[1]
    stored, file, texts = source.stored, file_of(last), plan.materials.calibration
    bits, scheme = spec.bits or DTYPE_BITS[source.own_dtype], spec.scheme
    if stored is not None:
        bits = stored.bits
        scheme = scheme if spec.asks else f"as stored: {stored.text}"
    elif bits > DTYPE_BITS[dtype]:  # what is stored in fp32 is rounded before it is computed with
        bits, scheme = DTYPE_BITS[dtype], f"{scheme} (fp32), computed in {dtype}"
    facts: dict[str, object] = {
        "bits": bits,
        "scheme": scheme,
        "backend": stored.package[0] if stored else spec.backend,
        "kernel": plan.kernel,
        "calibration": texts.data if texts is not None and last.calibrated else None,
    }
    facts |= dict(last.options)
    if hasattr(file, "settle"):
        facts |= file.settle(last, source, plan.materials)
    made = ConditionOptions.model_validate(facts)
    deployed = plan.materials.deployed.get(spec.name)
    origin = None if deployed is None else deployed.record
    return Condition(name=spec.name, kind=spec.kind, options=made, deployed=origin, first=first)


def _pick_device_and_kernel(
    spec: ConditionSpec, options: KernelOptions
) -> tuple[str, Kernel | None]:
    device = pick_device(options.device)
    require_available(spec, device)
    return device, pick_kernel(options.quant_kernel, spec, device)


def _require_loadable(source: Source, spec: ConditionSpec) -> None:
    """Refuse to change weights that are quantized already, or that nothing here unpacks."""
    stored = source.stored
    if stored is None:
        return
    package, command = stored.package
    if importlib.util.find_spec(package) is None:
        raise PrecisionError(
            f"{source.files.path} is quantized already ({stored.text}), and {package}, "
            f"which unpacks it, is not installed: {command}"
        )
    made = spec.of_weights
    if spec.name != FULL and made is not None and made.kind != "cached":
        raise PrecisionError(
            f"{source.files.path} is quantized already ({stored.text}) and cannot be loaded "
            f"as {spec.name}; use --quant none for it as it is, or give the unquantized checkpoint"
        )


def _require_askable(source: Source, options: LoadOptions) -> None:
    """Refuse what the model cannot be asked, whatever its weights are."""
    thought_end(source.tokenizer, options.think_end_token)
    context = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    if options.max_length and isinstance(context, int) and options.max_length > context:
        raise OptionError(
            f"--max-length {options.max_length}: the model's context is {context} tokens"
        )


def require_available(spec: ConditionSpec, device: str) -> None:
    """Raise PrecisionError with the reason where ``spec`` cannot be made on ``device``."""
    if device == "auto" and spec.backend not in _SPREAD:
        raise PrecisionError(
            f"{spec.name} is made on one device; use --device cuda, or another precision"
        )
    reason = spec.missing()
    if reason:
        raise PrecisionError(f"{spec.name} cannot run here: {reason}")


def pick_device(asked: str | None) -> str:
    """The device to run on: CUDA when there, unless asked otherwise. ``auto`` stays so where there
    are several GPUs to spread a model over.

    Raises:
        OptionError: the device does not exist here.
    """
    import torch

    if asked == "auto" and torch.cuda.device_count() > 1:
        return "auto"
    if asked is None or asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(asked).type not in ("cpu", "cuda"):
            raise OptionError(f"device {asked!r}: only cpu, cuda and auto are supported")
        torch.empty(1, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise OptionError(f"device {asked!r} is not there; use --device cpu or cuda") from None
    return "cuda:0" if asked == "cuda" else asked


def pick_dtype(asked: str, spec: ConditionSpec, own: str, device: str) -> str:
    """The compute dtype: ``asked``, or for ``auto`` the storage precision's own.

    A checkpoint stored in fp16 computes in fp32 on CPU under ``auto``, where fp16 products are
    about eight times slower and fp32 holds the same weights exactly.
    """
    if asked != "auto":
        chosen, why = asked, "asked for by --dtype"
    elif spec.name in DTYPES:
        chosen, why = spec.name, "what the precision stores"
    elif own == "fp16" and device == "cpu":
        chosen, why = "fp32", "fp16 products are slow on CPU, and fp32 holds the same weights"
    else:
        chosen, why = own, "what the checkpoint is stored in"
    explain(f"{spec.name}: compute dtype {chosen}, {why}")
    return chosen


def pick_kernel(asked: str, spec: ConditionSpec, device: str) -> Kernel | None:
    """How ``spec`` runs: as asked, or for ``auto`` what is faster. On CPU products with dense
    weights are; elsewhere the packed weights save memory.

    Raises:
        PrecisionError: it has no such way.
    """
    if not spec.kernels:
        return None
    if asked == "auto":
        best: Kernel = "dequantized" if device == "cpu" else "native"
        return best if best in spec.kernels else spec.kernels[0]
    for kernel in spec.kernels:
        if kernel == asked:
            return kernel
    why = "it quantizes activations too" if spec.kernels == ("native",) else "it has no kernel"
    raise PrecisionError(
        f"{spec.name} runs only {spec.kernels[0]} ({why}); use --quant-kernel auto, or run it apart"
    )
