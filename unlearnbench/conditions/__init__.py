"""How a checkpoint is met: as it is stored, quantized, pruned, noised. One small file a condition.

A condition's file lies in this folder or in ``quantize``, is found by listing them, and has what
``ConditionFile`` says. See docs/add-a-condition.md.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from unlearnbench.conditions.base import Codes, ConditionSpec, LoadPlan, ModelWithProof
from unlearnbench.errors import PrecisionError, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

__all__ = [
    "ALIASES",
    "ConditionFile",
    "encode",
    "families",
    "file_of",
    "find_condition",
    "has_codes",
    "precisions",
    "resolve",
    "why_unavailable",
]

# What people type, and what it means here (docs/protocol.md).
ALIASES = {
    "4bit": "bnb-fp4",  # transformers' load_in_4bit=True with no more said
    "8bit": "bnb-int8",
    "fp4": "bnb-fp4",
    "nf4": "bnb-nf4",
    "int4": "rtn-int4",
    "int8": "rtn-int8",
}

# Files of this folder that all conditions share.
_SHARED = ("base", "load", "options", "proof", "quantize")


class ConditionFile(Protocol):
    """A file that offers conditions. It imports its heavy library inside its functions.

    Optional are ``FAMILY`` and ``parse``, for conditions whose names hold a number;
    ``unavailable``; and ``encode``, where a quantizer's codes follow from a weight alone.
    """

    CONDITIONS: tuple[ConditionSpec, ...]
    """Those with a fixed name."""
    FAMILY: ConditionSpec
    """What the names that ``parse`` reads look like, for lists: ``prune-magnitude-S``."""
    parse: Callable[[str], ConditionSpec | None]
    """The condition that a name stands for; None for a name of another kind. Raises PrecisionError
    for a number out of bounds."""
    unavailable: Callable[[ConditionSpec, str], str | None]
    """(spec, device) -> why it cannot be made here, or None."""
    encode: Callable[[ConditionSpec, Tensor], Codes]
    """(spec, weight of shape (out, in)) -> its codes, without a model."""
    load: Callable[[ConditionSpec, CheckpointSource, LoadPlan], ModelWithProof]
    """(spec, checkpoint, dtype, device and the like) -> the model and the proof."""


def _files() -> list[ConditionFile]:
    from unlearnbench.conditions import quantize

    found: list[ConditionFile] = []
    for package, path in ((__name__, __path__), (quantize.__name__, quantize.__path__)):
        names = sorted(m.name for m in pkgutil.iter_modules(path) if m.name not in _SHARED)
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
        if spec in file.CONDITIONS:
            return file
    for file in files:
        if hasattr(file, "FAMILY") and spec in (file.FAMILY, file.parse(spec.name)):
            return file
    raise PrecisionError(f"no file offers the condition {one_line(spec.name, 80)}")


def why_unavailable(spec: ConditionSpec, device: str) -> str | None:
    """Why ``spec`` cannot be made on ``device``, with what to install; None where it can."""
    file = file_of(spec)
    return file.unavailable(spec, device) if hasattr(file, "unavailable") else None


def has_codes(spec: ConditionSpec) -> bool:
    """Whether a weight's codes follow from the weight alone, as calibrated ones do not."""
    return spec.bits is not None and hasattr(file_of(spec), "encode")


def encode(spec: ConditionSpec, weight: Tensor) -> Codes:
    """Quantize one weight of shape (out, in) without a model; for specs with ``has_codes``."""
    return file_of(spec).encode(spec, weight)


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
