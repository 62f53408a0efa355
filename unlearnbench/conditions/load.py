"""A checkpoint at one precision: where quantization backends and the adapter meet."""

from __future__ import annotations

import importlib.util
import logging
import warnings

from unlearnbench.checkpoints.checkpoint import DTYPES, CheckpointSource
from unlearnbench.checkpoints.source import Source
from unlearnbench.conditions import quantize
from unlearnbench.conditions.base import Calibration, How, PrecisionSpec, pick_kernel
from unlearnbench.conditions.proof import join_proofs
from unlearnbench.errors import OptionError, PrecisionError
from unlearnbench.methods import combine_rule
from unlearnbench.models.hf import HFModel
from unlearnbench.results import Condition, ConditionOptions, Proof, kind_of_precision
from unlearnbench.util.explain import explain, explain_loaded

# Backends whose layers are made where accelerate puts them.
_SPREAD = ("torch", "bitsandbytes", "unlearnbench", "gguf")
DTYPE_BITS = {"fp32": 32.0, "bf16": 16.0, "fp16": 16.0}

log = logging.getLogger("unlearnbench")


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


def pick_dtype(asked: str, spec: PrecisionSpec, own: str, device: str) -> str:
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


def describe_precision(source: Source, spec: PrecisionSpec, how: How) -> Condition:
    """What a run at ``spec`` records, all but the proof."""
    stored = source.stored
    options = ConditionOptions(
        bits=stored.bits if stored else spec.bits or DTYPE_BITS[source.own_dtype],
        scheme=f"as stored: {stored.text}" if stored else spec.scheme,
        backend=stored.package[0] if stored else spec.backend,
        kernel=how.kernel,
        calibration=how.calibration.data if how.calibration and spec.calibrated else None,
        **spec.options,
    )
    return Condition(name=spec.name, kind=kind_of_precision(spec.name), options=options)


def load_model(
    source: Source, spec: PrecisionSpec, how: How, batch_size: int | None = None
) -> HFModel:
    """Load ``source`` at ``spec`` and prove that it is in force; of several checkpoints, for each,
    and join them.

    Raises:
        CheckpointError: the weights cannot be used.
        PrecisionError: the precision does not fit the checkpoint, or its library fails.
        NotInForceError: the precision did not take effect.
    """
    models = [_load_part(part, spec, how, batch_size) for part in source.parts]
    first = models[0]
    if source.ensemble is None:
        return first
    from unlearnbench.models.joined import JoinedModel

    combine = combine_rule(source.ensemble.method, source.ensemble.numbers)
    network = JoinedModel([model.network for model in models], combine)
    precision, proofs = first.condition, [model.condition.proof for model in models]
    known = {n: p for n, p in zip(source.ensemble.models, proofs, strict=True) if p is not None}
    if len(known) == len(proofs):
        precision = precision.model_copy(update={"proof": join_proofs(known)})
    return HFModel(network, source, precision, first.dtype, how.device, batch_size)


def _load_part(
    source: CheckpointSource, spec: PrecisionSpec, how: How, batch_size: int | None
) -> HFModel:
    require_precision(source, spec)
    if spec.calibrated and how.calibration is None:
        raise PrecisionError(f"{spec.name} needs calibration texts; give --calibration")
    from unlearnbench.models.rounding import quicken_int8

    with warnings.catch_warnings():
        # Libraries' advice about their own internals; ours are errors, not warnings.
        warnings.simplefilter("ignore")
        loaded = quantize.backend_of(spec).load(spec, source, how)
    precision = describe_precision(source, spec, how).model_copy(update={"proof": loaded.proof})
    dtype = {long: short for short, long in DTYPES.items()}[str(how.dtype).removeprefix("torch.")]
    _say_proof(precision, loaded.proof, dtype, how.device)
    model = source.finish(loaded.model)
    if how.device == "cpu":
        quicken_int8(model)
    explain_loaded(how.device, dtype, precision.options.kernel)
    return HFModel(model, source, precision, dtype, how.device, batch_size)


def _say_proof(precision: Condition, proof: Proof, dtype: str, device: str) -> None:
    kernel = f", {precision.options.kernel} kernel" if precision.options.kernel else ""
    log.info("%s on %s, compute dtype %s%s", precision.name, device, dtype, kernel)
    if dtype in ("bf16", "fp16") and device == "cpu":
        log.info(
            "%s products are slow on CPUs without hardware for them; --dtype fp32 may be faster",
            dtype,
        )
    if proof.on_grid and (precision.options.bits or 16) < 16:
        log.warning(
            "%s changed no weight by more than a rounding error: the checkpoint already lies on "
            "that grid",
            precision.name,
        )


def make_how(
    spec: PrecisionSpec, dtype: str, device: str, kernel: str, calibration: Calibration | None
) -> How:
    """How to load ``spec``; ``dtype`` is a short name, ``kernel`` auto, native or dequantized.

    Raises:
        PrecisionError: it has no such kernel.
    """
    import torch

    chosen = pick_kernel(kernel, spec, device)
    return How(getattr(torch, DTYPES[dtype]), device, chosen, calibration)


def require_available(spec: PrecisionSpec, device: str) -> None:
    """Raise PrecisionError with the reason where ``spec`` cannot run on ``device``."""
    if device == "auto" and spec.backend not in _SPREAD:
        raise PrecisionError(
            f"{spec.name} is made on one device; use --device cuda, or another precision"
        )
    reason = quantize.backend_of(spec).unavailable(spec, device)
    if reason:
        raise PrecisionError(f"{spec.name} cannot run here: {reason}")


def require_precision(source: Source, spec: PrecisionSpec) -> None:
    """Refuse to quantize a second time.

    Raises:
        PrecisionError: the checkpoint is quantized already and ``spec`` is not ``none``.
    """
    if source.stored is not None and spec.name != "none":
        raise PrecisionError(
            f"{source.files.path} is quantized already ({source.stored.text}) and cannot be loaded "
            f"as {spec.name}; use --quant none for it as it is, or give the unquantized checkpoint"
        )


def require_loadable(source: Source) -> None:
    """Raise PrecisionError where a checkpoint is packed in a scheme whose library is missing."""
    if source.stored is None:
        return
    package, command = source.stored.package
    if importlib.util.find_spec(package) is None:
        raise PrecisionError(
            f"{source.files.path} is quantized already ({source.stored.text}), and {package}, "
            f"which unpacks it, is not installed: {command}"
        )
