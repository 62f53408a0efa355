"""optimum-quanto through transformers: weights in 8 bits per output channel, or in 4 bits with a
shift per group of 128 columns (of fewer, in steps of 32, where 128 does not divide a layer).

On its first use in a process quanto compiles a small C++ extension, which unpacks 4-bit weights,
under a lock file that a killed process leaves behind; the next one would wait for it forever.
"""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.load import left_alone
from unlearnbench.conditions.base import (
    Codes,
    ConditionSpec,
    LoadPlan,
    ModelWithProof,
    ModuleReading,
    dense_linear,
)
from unlearnbench.conditions.proof import finish, require_linear
from unlearnbench.errors import NotInForceError, PrecisionError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from unlearnbench.checkpoints.checkpoint import CheckpointSource


def _spec(bits: int, scheme: str, constants: float) -> ConditionSpec:
    return ConditionSpec(
        f"quanto-int{bits}",
        "quantized",
        scheme,
        "optimum-quanto",
        {"weights": f"int{bits}"},
        bits=bits,
        bits_per_weight=bits + constants,
        kernels=("native", "dequantized"),
        extra="quanto",
        libraries=("optimum.quanto",),
    )


CONDITIONS = (
    _spec(8, "uniform, absmax per output channel", 0),
    _spec(4, "uniform with shift per group of at most 128 columns", 2 * 16 / 128),
)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Quantize every linear layer but the output head.

    Raises:
        PrecisionError: a killed process left the extension's build locked, or quanto passes over a
            layer.
        NotInForceError: the loaded modules are not what was asked for.
    """
    from transformers import QuantoConfig

    require_linear(spec, source)
    require_no_stale_lock()
    skipped = left_alone(source.model())
    config = QuantoConfig(weights=str(spec.options["weights"]), modules_to_not_convert=skipped)
    model = source.build(plan.dtype, plan.device, quantization_config=config)
    return finish(spec, source, model, lambda _, module: _inspect(spec, module), plan)


def require_no_stale_lock() -> None:
    """Refuse to wait for a build lock whose process is gone.

    torch's file baton keeps its lock file open while it builds, so a lock that no process has open
    was left by one that was killed.

    Raises:
        PrecisionError: names the file to remove.
    """
    spec = importlib.util.find_spec("optimum.quanto")
    root = Path(spec.origin).parent if spec is not None and spec.origin else Path()
    for lock in root.glob("library/extensions/*/build/lock"):
        if not _is_open(lock):
            raise PrecisionError(
                "optimum-quanto's build of its extension was cut off and left a lock, for which it "
                f"would wait forever; remove {lock} and run again"
            )


def _is_open(path: Path) -> bool:
    """Whether a process has the file open; True where that cannot be read, as on another's."""
    import psutil

    if not path.exists() or not Path("/proc/self/fd").is_dir():
        return True  # gone already
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # it ended, or is somebody else's
            for file in process.open_files():
                with contextlib.suppress(OSError):
                    if path.samefile(file.path):
                        return True
    return False


def _inspect(spec: ConditionSpec, module: nn.Module) -> ModuleReading | None:
    from optimum.quanto import QLinear, QTensor

    if not isinstance(module, QLinear):
        return None
    weight: Any = module.weight
    if not isinstance(weight, QTensor) or weight.qtype.bits != spec.bits:
        raise NotInForceError(f"{spec.name}: a module holds a weight of {type(weight).__name__}")
    size = getattr(weight, "_group_size", None)
    codes = getattr(weight._data, "_data", weight._data)
    constants = weight._scale, getattr(weight, "_shift", None)
    return ModuleReading.of(weight.dequantize(), size, codes, *constants)


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """Codes without a model."""
    from optimum.quanto import QLinear, freeze, qint4, qint8

    require_no_stale_lock()
    module: Any = QLinear.from_module(
        dense_linear(weight.float()), weights=qint8 if spec.bits == 8 else qint4
    )
    freeze(module)
    found = module.weight
    codes = found._data if spec.bits == 8 else found._data.unpack().reshape(weight.shape)
    return Codes(codes, found.dequantize().detach())
