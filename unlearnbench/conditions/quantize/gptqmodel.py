"""GPTQ and AWQ, both by GPTQModel and calibrated on texts.

GPTQ (arXiv 2210.17323) rounds column after column and moves each one's error into the columns that
are still to come, as weighted by the layer's inputs. AWQ (arXiv 2306.00978) scales up the columns
that large activations meet, folds the scales into the layer before, and rounds.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import check_loading, linear_layers
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
)
from unlearnbench.conditions.proof import (
    finish,
    require_coverable,
    require_linear,
    require_text_alone,
)
from unlearnbench.conditions.quantize.calibration import token_batches
from unlearnbench.errors import NotInForceError, PrecisionError, UnlearnbenchError, one_line
from unlearnbench.util.process import muted, unmoved_caches

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_GPTQ_OPTIONS: dict[str, Any] = {
    "desc_act": False,
    "act_group_aware": False,
    "true_sequential": True,
    "damp_percent": 0.1,
}
_AWQ_ROWS = 64
_FIT_STEPS = 8


def _spec(name: str, bits: int, group: int, scheme: str, options: dict[str, Any]) -> ConditionSpec:
    return ConditionSpec(
        f"{name}-int{bits}-g{group}",
        "quantized",
        f"{scheme} per group of {group} columns, calibrated",
        "gptqmodel",
        {"group_size": group, **options},
        bits=bits,
        bits_per_weight=bits + (16 + bits) / group,
        kernels=("native", "dequantized"),
        extra="gptq",
        libraries=("gptqmodel", "optimum") if name == "gptq" else ("gptqmodel",),
        calibrated=True,
    )


CONDITIONS = (
    *(
        _spec("gptq", bits, group, "GPTQ, symmetric", {"symmetric": True, **_GPTQ_OPTIONS})
        for bits in (3, 4, 8)
        for group in (64, 128)
    ),
    *(
        _spec(
            "awq", 4, group, "AWQ, uniform with zero point", {"zero_point": True, "format": "gemm"}
        )
        for group in (64, 128)
    ),
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        PrecisionError: the library cannot quantize this model, or its layers do not fit.
        NotInForceError: a layer was not quantized.
    """
    calibration = plan.materials.calibration
    assert calibration is not None  # noqa: S101 - load.prepare sees to it
    require_linear(spec, source)
    require_text_alone(spec, source)
    require_coverable(spec, source)  # and the checkpoint's own faults are told as such
    size = int(spec.options["group_size"])
    is_awq = spec.name.startswith("awq")
    if is_awq:
        _require_fit(spec, source.model())
    with gptqmodel():
        batches = token_batches(source, calibration)
        make = _load_awq if is_awq else _load_gptq
        model = make(spec, source, plan, batches)
        if plan.device == "cpu":
            without_compilation(model)
    before = source.state_dict()

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        reading = in_module(module, spec.bits, size)
        own = before.get(f"{name}.weight")
        if not is_awq or reading is None or own is None or own.shape != reading.weight.shape:
            return reading
        return reading._replace(own=unscaled(reading.weight, own))

    return finish(spec, source, model, inspect, plan)


@contextlib.contextmanager
def gptqmodel() -> Iterator[None]:
    """GPTQModel imported, set for small machines and silent.

    Raises:
        PrecisionError: the library fails; the message says how.
    """
    # Read when it is imported. With fewer workers than 2 its loader refuses to start; its packing
    # extension compiles for half a minute to save a second.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    os.environ.setdefault("GPTQMODEL_DISABLE_PACK_EXT", "1")
    try:
        with muted(), unmoved_caches():
            import gptqmodel  # noqa: F401

            yield
    except UnlearnbenchError:
        raise
    except Exception as error:  # the library asserts and raises many kinds of errors
        what = one_line(error, 200) or type(error).__name__
        raise PrecisionError(f"GPTQModel cannot quantize or load this model: {what}") from error


def _load_gptq(
    spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan, batches: list[dict[str, Any]]
) -> PreTrainedModel:
    """One transformer block after another, driven by optimum through transformers."""
    from transformers import GPTQConfig

    config = GPTQConfig(
        bits=spec.width,
        group_size=int(spec.options["group_size"]),
        dataset=batches,  # type: ignore[arg-type] # token ids are allowed too
        sym=True,
        backend="gptq_torch",
        **_GPTQ_OPTIONS,
    )
    return source.build(plan.dtype, plan.device, quantization_config=config)


def _require_fit(spec: ConditionSpec, model: PreTrainedModel) -> None:
    """GPTQModel only asserts what AWQ needs; found out here before the work."""
    size = int(spec.options["group_size"])
    for name, layer in linear_layers(model).items():
        rows, columns = layer.weight.shape
        if rows % _AWQ_ROWS or columns % size:
            raise PrecisionError(
                f"{spec.name} needs rows in multiples of {_AWQ_ROWS} and columns in multiples of "
                f"{size}, and {name} has {rows} x {columns}; use another group size or rtn"
            )


def _load_awq(
    spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan, batches: list[dict[str, Any]]
) -> PreTrainedModel:
    """By way of a temporary folder, because the library quantizes only what it loads itself."""
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD
    from transformers import AutoModelForCausalLM, AwqConfig

    config = QuantizeConfig(
        bits=4,
        group_size=int(spec.options["group_size"]),
        method=METHOD.AWQ,
        format=FORMAT.GEMM,
        sym=False,
        device=plan.device,
        offload_to_disk=False,
    )
    with tempfile.TemporaryDirectory(prefix="unlearnbench-awq-") as folder:
        full, packed = Path(folder) / "full", Path(folder) / "packed"
        source.model().save_pretrained(full)
        source.tokenizer.save_pretrained(full)
        with _working_in(folder):
            quantizer = GPTQModel.load(str(full), config, trust_remote_code=False)
            quantizer.quantize(batches, batch_size=1)
            quantizer.save(str(packed))
        # On CPU the library's choice; on GPUs its kernels repack the weights, and only this one can
        # be looked into.
        backend: Any = "auto" if plan.device == "cpu" else "awq_torch"
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            packed,
            dtype=plan.dtype,
            device_map={"": plan.device},
            quantization_config=AwqConfig(backend=backend),
            local_files_only=True,
            output_loading_info=True,
        )
    model, info = loaded
    check_loading(model, info, "what GPTQModel saved")
    model.generation_config = source.model().generation_config
    return model.eval()  # type: ignore[no-any-return]


@contextlib.contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """GPTQModel leaves a folder ``logs`` where it works."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def in_module(
    module: Any, bits: float | None = None, size: int | None = None
) -> ModuleReading | None:
    """What one of GPTQModel's linear modules holds; None for any other module.

    Raises:
        NotInForceError: it holds other bits or another group size than asked for.
    """
    from gptqmodel.nn_modules.qlinear import AWQuantLinear, BaseQuantLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    if not isinstance(module, BaseQuantLinear):
        return None
    found = (float(module.bits), int(module.group_size))
    if bits is not None and found != (bits, size):
        raise NotInForceError(f"a module holds {found[0]:g} bits in groups of {found[1]}")
    packed = {name: getattr(module, name) for name in ("qweight", "qzeros", "scales")}
    if isinstance(module, AWQuantLinear):
        values = dequantize_gemm(**packed, bits=module.bits, group_size=module.group_size)
    else:  # the class's own method: the instance's may be a compiled one
        values = type(module).dequantize_weight(module)
    values = values.T.contiguous()
    per = module.group_size if module.group_size > 0 else None
    order = getattr(module, "g_idx", None)
    by_group = values
    if per is not None and order is not None and len(order) == values.shape[1]:
        by_group = values[:, order.argsort(stable=True)]  # columns of a group side by side
    reading = ModuleReading.of(by_group, per, *packed.values())
    return reading._replace(weight=values)


def without_compilation(model: nn.Module) -> None:
    """Undo torch.compile on CPU, where it costs minutes at the first forward and saves nothing."""
    for module in model.modules():
        module.__dict__.pop("dequantize_weight", None)


def unscaled(weight: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The weight in force without AWQ's scales, which stand in the layers before and after."""
    return weight.double() / scaling(weight, own)


def scaling(weight: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """AWQ's scale of every weight: those of rows and columns that fit best, by alternating least
    squares in which a row weighs as much as it does in ``own``.
    """
    now = weight.double()
    exact = own.to(now)
    size = now.norm(dim=1, keepdim=True) / exact.norm(dim=1, keepdim=True)
    size = size.where(size.isfinite() & (size > 0), 1.0)
    now = now / size
    rows, columns = now.new_ones(now.shape[0], 1), now.new_ones(1, now.shape[1])
    for _ in range(_FIT_STEPS):
        columns = _fit(now, exact * rows, 0)
        rows = _fit(now, exact * columns, 1)
    found: torch.Tensor = rows * columns * size
    return found


def _fit(now: torch.Tensor, exact: torch.Tensor, dim: int) -> torch.Tensor:
    """The factor of every column (dim 0) or row (dim 1) that brings ``exact`` nearest ``now``: of
    one that is hardly alike, as a row too small for AWQ's smallest scale, at least half the ratio
    of their sizes, or dividing by it would make anything of it.
    """
    power = (exact * exact).sum(dim, keepdim=True)
    factor = (now * exact).sum(dim, keepdim=True) / power
    least = ((now * now).sum(dim, keepdim=True) / power).sqrt() / 2
    factor = factor.where(factor.abs() >= least, least)
    return factor.where((power > 0) & (factor.abs() > 0), 1.0)
