"""What backends share: the description of a precision, how it is asked for, and the two ways to
run it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from unlearnbench.errors import PrecisionError
from unlearnbench.results import CalibrationData, Proof

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

_INSTALL = "pip install unlearnbench"

Kernel: TypeAlias = Literal["native", "dequantized"]


@dataclass(frozen=True)
class PrecisionSpec:
    """One precision: its full name, bits of a quantized weight (None: the checkpoint's own) and
    how it is made. ``options`` are recorded in results and go to the backend's library.

    bits_per_weight: with the block's or group's constants as the library stores them for a 16-bit
    model, without those that an output channel has once. kernels: how it can run, empty where
    nothing is quantized. extra: what ``pip install unlearnbench[...]`` calls its libraries.
    """

    name: str
    bits: float | None
    scheme: str
    backend: str
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    bits_per_weight: float | None = None
    kernels: tuple[Kernel, ...] = ()
    extra: str | None = None
    calibrated: bool = False

    @property
    def install(self) -> str:
        """The command that installs what it needs."""
        return f"pip install 'unlearnbench[{self.extra}]'" if self.extra else _INSTALL


@dataclass(frozen=True)
class Calibration:
    """Texts for a quantizer that looks at activations, and what results record of them."""

    texts: tuple[str, ...]
    data: CalibrationData


@dataclass(frozen=True)
class How:
    """What a backend is asked for beside the precision. ``kernel`` is None where nothing is
    quantized; ``calibration`` is there for a calibrated precision. device: as torch names it, or
    ``auto``: the layers over all GPUs, as accelerate spreads them.
    """

    dtype: torch.dtype
    device: str
    kernel: Kernel | None = None
    calibration: Calibration | None = None


class Loaded(NamedTuple):
    """A model ready to answer, and what shows its precision."""

    model: PreTrainedModel
    proof: Proof


class Seen(NamedTuple):
    """What is in one quantized module.

    weight: in force, of shape (out, in). groups: the same values as rows that share constants, one
    a group, for counting distinct values. stored_as: the dtype that holds the codes. stored_bytes:
    of codes and constants as packed. own: the values to hold against the checkpoint's, where a
    library rescales columns; else ``weight``.
    """

    weight: torch.Tensor
    groups: torch.Tensor
    stored_as: str
    stored_bytes: int
    own: torch.Tensor | None = None


Inspect: TypeAlias = Callable[[str, "nn.Module"], "Seen | None"]
"""(name, module) -> what is in it, or None for a module that is not quantized. Called before the
first forward pass, because bitsandbytes repacks its 4-bit weights there on CPU and can no longer
give them back."""


class Codes(NamedTuple):
    """A weight as a quantizer codes it. codes: (out, in), integers. width: the mean distance of two
    neighbouring levels, of a shape that broadcasts to (out, in).
    """

    codes: torch.Tensor
    width: torch.Tensor


def held_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of all the tensors that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype's name without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


def lacking(spec: PrecisionSpec, *modules: str) -> str | None:
    """Why ``spec``, which imports ``modules``, cannot run here; None where all are installed."""
    for module in modules:
        if not _installed(module):
            return f"{module.replace('.', '-')} is not installed: {spec.install}"
    return None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def pick_kernel(asked: str, spec: PrecisionSpec, device: str) -> Kernel | None:
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


def groups(weight: torch.Tensor, size: int | None) -> torch.Tensor:
    """The weight's rows cut into groups of ``size`` columns, (n, size); a shorter last group is
    filled with its last value. None: a group is a whole row.
    """
    if size is None or size > weight.shape[1]:
        return weight
    short = -weight.shape[1] % size
    if short:
        import torch

        weight = torch.cat([weight, weight[:, -1:].expand(-1, short)], dim=1)
    return weight.reshape(-1, size)


def blocks(weight: torch.Tensor, size: int) -> torch.Tensor:
    """The weight's values in memory order, cut into blocks of ``size``, (n, size), whatever the
    rows; a shorter last block is filled with its last value.
    """
    return groups(weight.reshape(1, -1), size)


def replace_linears(
    model: PreTrainedModel, names: list[str], make: Callable[[str, nn.Linear], nn.Module]
) -> None:
    """Put ``make(name, module)`` in the place of each named linear module, one after another."""
    for name in names:
        parent, _, leaf = name.rpartition(".")
        module = model.get_submodule(name)
        setattr(model.get_submodule(parent), leaf, make(name, module))  # type: ignore[arg-type]


def make_dense(model: PreTrainedModel, inspect: Inspect, dtype: torch.dtype) -> None:
    """Put a plain linear module with the weight in force in the place of every quantized one."""
    import torch
    from torch import nn

    for name, module in list(model.named_modules()):
        seen = inspect(name, module)
        if seen is None:
            continue
        rows, columns = seen.weight.shape
        with torch.device("meta"):
            dense = nn.Linear(columns, rows, bias=False)
        dense.weight = nn.Parameter(seen.weight.to(dtype), requires_grad=False)
        bias = getattr(module, "bias", None)
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, dense)
