"""AWQ (arXiv 2306.00978): scales up the columns that large activations meet, as found on
calibration texts, folds the scales into the layer before, and rounds. GPTQModel's implementation.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import check_loading, linear_layers
from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
)
from unlearnbench.conditions.proof import finish, require_coverable
from unlearnbench.conditions.quantize import _gptqmodel as library
from unlearnbench.errors import PrecisionError

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

_ROWS = 64
_FIT_STEPS = 8

CONDITIONS = tuple(
    ConditionSpec(
        f"awq-int4-g{group}",
        "quantized",
        f"AWQ, uniform with zero point per group of {group} columns, calibrated",
        "gptqmodel",
        {"group_size": group, "zero_point": True, "format": "gemm"},
        bits=4,
        bits_per_weight=4 + (16 + 4) / group,
        kernels=("native", "dequantized"),
        extra="gptq",
        libraries=("gptqmodel",),
        calibrated=True,
    )
    for group in (64, 128)
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head. The weights pass through a temporary folder,
    because the library quantizes only what it loads itself.

    Raises:
        PrecisionError: the library cannot quantize this model, or its layers do not fit.
        NotInForceError: a layer was not quantized.
    """
    assert plan.calibration is not None  # noqa: S101 - load.prepare sees to it
    require_coverable(spec, source)
    _require_fit(spec, source.model())
    with tempfile.TemporaryDirectory(prefix="unlearnbench-awq-") as folder:
        full, packed = Path(folder) / "full", Path(folder) / "packed"
        source.model().save_pretrained(full)
        source.tokenizer.save_pretrained(full)
        with library.gptqmodel():
            batches = library.token_batches(source, plan.calibration)
            with _working_in(folder):
                _quantize(spec, full, packed, batches, plan.device)
            model = _load(packed, plan)
            model.generation_config = source.model().generation_config
            if plan.device == "cpu":
                library.without_compilation(model)
    before = source.state_dict()

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        size = int(spec.options["group_size"])
        reading = library.in_module(module, spec.bits, size)
        own = before.get(f"{name}.weight")
        if reading is None or own is None or own.shape != reading.weight.shape:
            return reading
        return reading._replace(own=_unscaled(reading.weight, own))

    return finish(spec, source, model, inspect, plan)


def _require_fit(spec: ConditionSpec, model: PreTrainedModel) -> None:
    """GPTQModel only asserts what it needs; found out here before the work."""
    size = int(spec.options["group_size"])
    for name in list(linear_layers(model)):
        rows, columns = model.get_submodule(name).get_parameter("weight").shape
        if rows % _ROWS or columns % size:
            raise PrecisionError(
                f"{spec.name} needs rows in multiples of {_ROWS} and columns in multiples of "
                f"{size}, and {name} has {rows} x {columns}; use another group size or rtn"
            )


@contextmanager
def _working_in(folder: str) -> Iterator[None]:
    """GPTQModel leaves a folder ``logs`` where it works."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _quantize(
    spec: ConditionSpec, full: Path, packed: Path, batches: list[dict[str, Any]], device: str
) -> None:
    from gptqmodel import GPTQModel, QuantizeConfig
    from gptqmodel.quantization import FORMAT, METHOD

    config = QuantizeConfig(
        bits=4,
        group_size=int(spec.options["group_size"]),
        method=METHOD.AWQ,
        format=FORMAT.GEMM,
        sym=False,
        device=device,
        offload_to_disk=False,
    )
    model = GPTQModel.load(str(full), config, trust_remote_code=False)
    model.quantize(batches, batch_size=1)
    model.save(str(packed))


def _load(packed: Path, plan: LoadPlan) -> PreTrainedModel:
    from transformers import AutoModelForCausalLM, AwqConfig

    # On CPU the library's choice; on GPUs its kernels repack the weights, and only this one can be
    # looked into.
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
    return model.eval()  # type: ignore[no-any-return]


def _unscaled(weight: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """The weight in force without AWQ's scales, which stand in the layers before and after.

    The scales are those of rows and columns that fit best, by alternating least squares.
    """
    now = weight.double()
    exact = own.to(now)
    rows, columns = now.new_ones(now.shape[0], 1), now.new_ones(1, now.shape[1])
    for _ in range(_FIT_STEPS):
        columns = _fit(now, exact * rows, 0)
        rows = _fit(now, exact * columns, 1)
    return now / (rows * columns)


def _fit(now: torch.Tensor, exact: torch.Tensor, dim: int) -> torch.Tensor:
    """The factor of every column (dim 0) or row (dim 1) that brings ``exact`` nearest ``now``."""
    power = (exact * exact).sum(dim, keepdim=True)
    factor = (now * exact).sum(dim, keepdim=True) / power.where(power > 0, 1.0)
    return factor.where(factor.abs() > 0, 1.0)
