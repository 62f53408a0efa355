"""A condition is how a checkpoint is met: as it is stored, quantized, pruned, relearned. Here is
what describes one, how one is found by its name, and what the files of conditions share.

A condition's file lies in this folder or in ``quantize``, is found by listing them, and has what
``ConditionFile`` says. See docs/add-a-condition.md.
"""

from __future__ import annotations

import difflib
import importlib.util
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, TypeAlias, cast

from unlearnbench.errors import PrecisionError, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from unlearnbench.checkpoints.checkpoint import CheckpointSource
    from unlearnbench.checkpoints.source import Source
    from unlearnbench.conditions.elsewhere.files import Deployed
    from unlearnbench.results import CalibrationData, Proof
    from unlearnbench.tasks.asking import Asking
    from unlearnbench.tasks.rows import TaskSamples
    from unlearnbench.tasks.spec import TaskSpec

# What people type, and what it means here (docs/protocol.md).
ALIASES = {
    "auto-round-int4": "auto-round-int4-g128",  # the library's own
    "4bit": "bnb-fp4",  # transformers' load_in_4bit=True with no more said
    "8bit": "bnb-int8",
    "fp4": "bnb-fp4",
    "nf4": "bnb-nf4",
    "int4": "rtn-int4",
    "int8": "rtn-int8",
}

# Files of this folder that all conditions share.
_SHARED = (
    *("asking", "base", "load", "materials", "options", "proof", "quantize", "searching"),
    *("suffix_loss", "texts", "elsewhere"),
)

# Of a group's range: by so much may constants in few bits put an end of a grid beyond it.
_SLACK = 1e-3

Kernel: TypeAlias = Literal["native", "dequantized"]
Option: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class ConditionSpec:
    """One condition that a checkpoint can be met under."""

    name: str
    """In full: the run folder's name too."""
    kind: str
    """stored, quantized, deployed, pruned, noised, merged, relearned, asked; a chain:
    pruned-quantized."""
    scheme: str
    """What is done to the weights, or to what is asked, in words."""
    backend: str = "unlearnbench"
    """The library that does it."""
    options: Mapping[str, Option] = field(default_factory=dict)
    """What results record of it beside these, and what its library is told."""
    bits: float | None = None
    """Bits of a weight; None: the checkpoint's own."""
    bits_per_weight: float | None = None
    """With the block's or group's constants as the library stores them for a 16-bit model, without
    those that an output channel has once."""
    kernels: tuple[Kernel, ...] = ()
    """How it can run; empty where nothing is quantized."""
    extra: str | None = None
    """What ``pip install unlearnbench[...]`` calls its libraries."""
    libraries: tuple[str, ...] = ()
    """The modules that it imports, all of which must be there."""
    calibrated: bool = False
    """Whether it needs texts to look at activations."""
    by_matrix: bool = False
    """Whether what a matrix gets depends on its place in the model; see ``for_matrix``."""
    learns: bool = False
    """Whether it needs texts to learn."""
    needs_target: bool = False
    """Whether it is made with the target's weights too."""
    needs_control: bool = False
    """Whether it may put knowledge in instead of bringing it back, so that it is to be done to the
    retrained model too."""
    chain: tuple[ConditionSpec, ConditionSpec] | None = None
    """Of a chain: the change of the weights, and the precision that follows it."""
    asks: bool = False
    """Whether it changes what a model is asked, and leaves the weights as they are stored."""
    searches: bool = False
    """Whether it searches for what to ask, which a budget bounds."""

    @property
    def width(self) -> int:
        """Bits of a code. Raises PrecisionError where the spec states none."""
        if self.bits is None:
            raise PrecisionError(f"{self.name} states no bits, and so cannot quantize")
        return int(self.bits)

    @property
    def asking(self) -> ConditionSpec | None:
        """What changes what is asked: itself, or a chain's first part; None where nothing does."""
        return (self.chain[0] if self.chain else self) if self.asks else None

    @property
    def of_weights(self) -> ConditionSpec | None:
        """What is done to the weights; None where they are left as they are stored."""
        return (self.chain and self.chain[1]) if self.asks else self

    @property
    def install(self) -> str:
        """The command that installs what it needs."""
        return "pip install " + (f"'unlearnbench[{self.extra}]'" if self.extra else "unlearnbench")

    def missing(self) -> str | None:
        """Why it cannot run here, with the command that helps; None where nothing is lacking."""
        for module in self.libraries:
            try:
                found = importlib.util.find_spec(module)
            except ModuleNotFoundError:  # its parent package is missing
                found = None
            if found is None:
                return f"{module.replace('.', '-')} is not installed: {self.install}"
        return None


@dataclass(frozen=True)
class Calibration:
    """Texts for a quantizer that looks at activations, and what results record of them."""

    texts: tuple[str, ...]
    data: CalibrationData
    file: Path | None = None
    """An importance matrix, in place of texts."""


@dataclass(frozen=True)
class Relearning:
    """Texts to learn, how, and what results record of both."""

    texts: tuple[tuple[str, str], ...]
    """What is asked, on which there is no loss, and what is learned behind it; of a plain text
    nothing is asked."""
    lr: float | None
    """None: the condition's own."""
    batch_size: int
    """Texts of an optimizer step."""
    seed: int
    facts: Mapping[str, Option]
    answer_blank: str = "auto"
    """Where the blank between prompt and answer belongs, as in the evaluation. Here it begins what
    is learned, wherever a task has both versions."""


@dataclass(frozen=True)
class Materials:
    """What conditions are made with beside the checkpoint; each for those that need it."""

    calibration: Calibration | None = None
    target: CheckpointSource | None = None
    """The model before unlearning."""
    relearning: Relearning | None = None
    deployed: Mapping[str, Deployed] = field(default_factory=dict)
    """Checkpoints that another tool quantized, by condition."""


@dataclass(frozen=True)
class LoadPlan:
    """What a condition is made with, settled before a weight is read."""

    dtype: torch.dtype
    """Compute dtype."""
    device: str
    """As torch names it, or ``auto``: the layers over all GPUs, as accelerate spreads them."""
    kernel: Kernel | None = None
    """None where nothing is quantized."""
    materials: Materials = field(default_factory=Materials)


class ModelWithProof(NamedTuple):
    """A model ready to answer, and what shows its condition."""

    model: PreTrainedModel
    proof: Proof
    first: Proof | None = None
    """Of a chain's first part."""


class ModuleReading(NamedTuple):
    """What is in one covered module."""

    weight: torch.Tensor
    """In force, of shape (out, in)."""
    groups: torch.Tensor
    """The same values as rows that share constants, one a group, for counting distinct values."""
    stored_as: str
    """The dtype that holds the codes."""
    stored_bytes: int
    """Of codes and constants as packed."""
    own: torch.Tensor | None = None
    """The values to hold against the checkpoint's, where a library rescales columns; else
    ``weight``."""
    bits: float | None = None
    """Of a code, where matrices differ in them."""

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        size: int | None,
        codes: torch.Tensor,
        *constants: torch.Tensor | None,
    ) -> ModuleReading:
        """Of a weight of which ``size`` columns of a row share constants; None: the whole row."""
        stored = held_bytes(codes, *constants)
        return cls(weight, groups(weight, size), dtype_name(codes), stored)


Inspect: TypeAlias = Callable[[str, "nn.Module"], "ModuleReading | None"]
"""(name, module) -> what is in it, or None for a module that the condition does not cover. Called
before the first forward pass, because bitsandbytes repacks its 4-bit weights there on CPU and can
no longer give them back."""


class Codes(NamedTuple):
    """A weight as a quantizer codes it."""

    codes: torch.Tensor
    """Integers, (out, in)."""
    values: torch.Tensor
    """What the codes stand for, (out, in), in float32: the weight in force."""


class Levels(NamedTuple):
    """Where a weight lies on a quantizer's grid; each of shape (out, in), in float32."""

    values: torch.Tensor
    """In force; where the end of a grid reaches beyond what it hangs on, drawn in to that."""
    below: torch.Tensor
    """The next lower level. NaN where there is none, and for a weight that the grid hangs on, as a
    group's largest: moved, it would move all levels."""
    above: torch.Tensor
    """The next higher level, in the same way."""

    @classmethod
    def of(
        cls,
        weight: torch.Tensor,
        nearby: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        bounds: tuple[torch.Tensor, torch.Tensor],
    ) -> Levels:
        """nearby: the level below, its own and the one above, where an end is its own neighbour;
        bounds: the group's values that the grid hangs on. A level that lies beyond them by a
        rounding error is drawn in, one that lies farther is none.
        """
        low, high = bounds
        fixed, slack = (weight == low) | (weight == high), (high - low) * _SLACK
        ends = fixed | (nearby[0] < low - slack), fixed | (nearby[2] > high + slack)
        below, values, above = (level.float().clamp(low, high) for level in nearby)
        nan = float("nan")
        return cls(
            values,
            below.masked_fill(ends[0] | (below >= values), nan),
            above.masked_fill(ends[1] | (above <= values), nan),
        )


class ConditionFile(Protocol):
    """A file that offers conditions. It imports its heavy library inside its functions.

    Optional are ``FAMILY`` and ``parse``, for conditions whose names hold a number, ``encode``,
    where a quantizer's codes follow from a weight alone, ``levels`` beside it, and ``settle``, for
    a condition that records more than its name says.
    """

    CONDITIONS: tuple[ConditionSpec, ...]
    """Those with a fixed name."""
    FAMILY: ConditionSpec
    """What the names that ``parse`` reads look like, for lists: ``prune-magnitude-S``."""
    parse: Callable[[str], ConditionSpec | None]
    """The condition that a name stands for; None for a name of another kind. Raises PrecisionError
    for a number out of bounds."""
    encode: Callable[[ConditionSpec, torch.Tensor], Codes]
    """(spec, weight of shape (out, in)) -> its codes and their values, without a model."""
    for_matrix: Callable[[ConditionSpec, str, Sequence[str], Mapping[str, Any]], ConditionSpec]
    """(spec, a matrix, all of them, the text model's config) -> the spec for that matrix, for specs
    that are ``by_matrix``."""
    levels: Callable[[ConditionSpec, torch.Tensor], Levels]
    """(spec, weight of shape (out, in)) -> its levels and their neighbours, without a model."""
    SOLVED: bool
    """Beside ``levels``, where a grid is searched for on all weights of a group."""
    settle: Callable[[ConditionSpec, Source, Materials], Mapping[str, Option]]
    """(spec, checkpoint, materials) -> options to record beside the spec's. Raises where the
    checkpoint or the materials do not do; no weight is read yet."""
    load: Callable[[ConditionSpec, CheckpointSource, LoadPlan], ModelWithProof]
    """(spec, checkpoint, dtype, device and the like) -> the model and the proof."""
    fits: Callable[[TaskSpec], bool]
    """In place of ``load``, for a condition that ``asks``: whether it fits a task."""
    ask: Callable[[ConditionSpec, TaskSamples], Asking]
    """Beside ``fits``: how a task that it fits is put to a model. Raises PrecisionError, before a
    model is loaded, where that cannot be done."""


def _files() -> list[ConditionFile]:
    found: list[ConditionFile] = []
    for package in ("unlearnbench.conditions", "unlearnbench.conditions.quantize"):
        files = pkgutil.iter_modules(import_module(package).__path__)
        names = sorted(file.name for file in files if file.name not in _SHARED)
        modules = (import_module(f"{package}.{name}") for name in names)
        found += [cast(ConditionFile, m) for m in modules if hasattr(m, "CONDITIONS")]
    return found


def precisions() -> dict[str, ConditionSpec]:
    """Every condition with a fixed name: the precisions, and the checkpoint as it is."""
    return {spec.name: spec for file in _files() for spec in file.CONDITIONS}


def families() -> list[ConditionSpec]:
    """What names with a number in them look like, one for each kind."""
    return [file.FAMILY for file in _files() if hasattr(file, "FAMILY")]


def file_of(spec: ConditionSpec) -> ConditionFile:
    """The file that offers ``spec``."""
    files = _files()
    for file in files:
        if spec.name in [own.name for own in file.CONDITIONS]:
            return file
    for file in files:
        if hasattr(file, "FAMILY") and (spec == file.FAMILY or file.parse(spec.name)):
            return file
    raise PrecisionError(f"no file offers the condition {one_line(spec.name, 80)}")


def has_codes(spec: ConditionSpec) -> bool:
    """Whether a weight's codes follow from the weight alone, as calibrated ones do not."""
    return spec.bits is not None and not spec.calibrated and hasattr(file_of(spec), "encode")


def for_matrix(
    spec: ConditionSpec, name: str, names: Sequence[str], config: Mapping[str, Any]
) -> ConditionSpec:
    """``spec`` as it is for one of a model's matrices; names: all of them."""
    return file_of(spec).for_matrix(spec, name, names, config) if spec.by_matrix else spec


def encode(spec: ConditionSpec, weight: torch.Tensor) -> Codes:
    """Quantize one weight of shape (out, in) without a model; for specs with ``has_codes``."""
    return file_of(spec).encode(spec, weight)


def has_levels(spec: ConditionSpec) -> bool:
    """Whether the levels next to a weight's own are known."""
    return has_codes(spec) and hasattr(file_of(spec), "levels")


def is_solved(spec: ConditionSpec) -> bool:
    """Whether a group's grid is searched for, and so follows a weight that is moved."""
    return getattr(file_of(spec), "SOLVED", False)


def levels(spec: ConditionSpec, weight: torch.Tensor) -> Levels:
    """One weight of shape (out, in) on its grid, without a model; for specs with ``has_levels``."""
    return file_of(spec).levels(spec, weight)


def find_condition(name: str) -> ConditionSpec:
    """Return the condition called ``name`` in full or by alias.

    Raises:
        PrecisionError: unknown, and near names are suggested; or its number is out of bounds.
    """
    fixed = precisions()
    full = ALIASES.get(name, name)
    if full in fixed:
        return fixed[full]
    for file in _files():
        found = file.parse(name) if hasattr(file, "parse") else None
        if found is not None:
            return found
    known = [*fixed, *ALIASES, *(family.name for family in families())]
    near = difflib.get_close_matches(name, known, n=3) or known
    raise PrecisionError(f"unknown condition {one_line(name)!r}; known: {', '.join(near)}")


def resolve(names: Sequence[str]) -> tuple[ConditionSpec, ...]:
    """Return the conditions for a list of names, each once, in the order given.

    Raises:
        PrecisionError: no name, an unknown one, or a number out of bounds.
    """
    if not names:
        raise PrecisionError("no condition was asked for; --quant none is the checkpoint as it is")
    return tuple({spec.name: spec for spec in map(find_condition, names)}.values())


def bounded(specs: Sequence[ConditionSpec], budget: int | None) -> tuple[ConditionSpec, ...]:
    """The conditions, those that search with a budget of forward passes. Raises PrecisionError
    where there is one and none searches.
    """
    if budget is None:
        return tuple(specs)
    if not any(spec.searches for spec in specs):
        raise PrecisionError("--budget bounds searches, and none of these conditions makes one")
    return tuple(_bounded(spec, budget) if spec.searches else spec for spec in specs)


def _bounded(spec: ConditionSpec, budget: int) -> ConditionSpec:
    if spec.chain is not None:
        return replace(spec, chain=(_bounded(spec.chain[0], budget), spec.chain[1]))
    return replace(spec, options={**spec.options, "budget": budget})


def canonical_number(text: str) -> str:
    """A decimal number in one spelling: ``30.0`` is ``30``."""
    return format(Decimal(text).normalize(), "f")


def held_bytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of all the tensors that are there."""
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def dtype_name(tensor: torch.Tensor) -> str:
    """The dtype's name without ``torch.``."""
    return str(tensor.dtype).removeprefix("torch.")


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


def dense_like(
    origin: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> nn.Module:
    """A plain linear module of ``origin``'s kind; weight: (out, in)."""
    import torch
    from transformers.pytorch_utils import Conv1D

    if not isinstance(origin, Conv1D):
        return dense_linear(weight, bias)
    with torch.device("meta"):
        made = Conv1D(*weight.shape)
    made.weight = torch.nn.Parameter(weight.detach().T.contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = torch.nn.Parameter(bias.detach(), requires_grad=False)
    return made


def dense_linear(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A plain linear module that holds ``weight`` and ``bias`` as they are."""
    from torch import nn

    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return linear
