"""Precisions: every way to store a checkpoint's weights, one small file a backend.

A backend is a module of this folder with ``PRECISIONS`` (a tuple of PrecisionSpec), ``unavailable``
and ``load``; its heavy library is imported inside those. Where codes follow from the weights alone
it has ``encode`` too. See docs/add-a-backend.md.
"""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from unlearnbench.conditions.base import Codes, How, Loaded, PrecisionSpec
from unlearnbench.errors import PrecisionError, one_line

if TYPE_CHECKING:
    from torch import Tensor

    from unlearnbench.checkpoints.checkpoint import CheckpointSource

__all__ = [
    "ALIASES",
    "Backend",
    "backend_of",
    "encode",
    "find_precision",
    "has_codes",
    "precisions",
    "resolve",
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


class Backend(Protocol):
    """A module of this folder."""

    PRECISIONS: tuple[PrecisionSpec, ...]
    unavailable: Callable[[PrecisionSpec, str], str | None]
    """(spec, device) -> why it cannot run here, or None."""
    load: Callable[[PrecisionSpec, CheckpointSource, How], Loaded]
    """(spec, source, compute dtype and the like) -> the model and the proof."""


def _backends() -> Sequence[Backend]:
    names = (m.name for m in pkgutil.iter_modules(__path__))
    modules = (import_module(f"{__name__}.{name}") for name in sorted(names))
    return [cast(Backend, module) for module in modules if hasattr(module, "PRECISIONS")]


def precisions() -> dict[str, PrecisionSpec]:
    """Every precision by its full name."""
    return {spec.name: spec for backend in _backends() for spec in backend.PRECISIONS}


def backend_of(spec: PrecisionSpec) -> Backend:
    """The module that offers ``spec``."""
    return next(b for b in _backends() if spec in b.PRECISIONS)


def has_codes(spec: PrecisionSpec) -> bool:
    """Whether a weight's codes follow from the weight alone, as calibrated ones do not."""
    return spec.bits is not None and hasattr(backend_of(spec), "encode")


def encode(spec: PrecisionSpec, weight: Tensor) -> Codes:
    """Quantize one weight of shape (out, in) without a model; for specs with ``has_codes``."""
    backend: Any = backend_of(spec)
    codes: Codes = backend.encode(spec, weight)
    return codes


def find_precision(name: str) -> PrecisionSpec:
    """Return the precision called ``name`` in full or by alias.

    Raises:
        PrecisionError: unknown; near names are suggested.
    """
    known = precisions()
    full = ALIASES.get(name, name)
    if full not in known:
        near = difflib.get_close_matches(name, [*known, *ALIASES], n=3) or [*known, *ALIASES]
        raise PrecisionError(f"unknown precision {one_line(name)!r}; known: {', '.join(near)}")
    return known[full]


def resolve(names: Sequence[str]) -> tuple[PrecisionSpec, ...]:
    """Return the precisions for a list of names, each once, in the order given.

    Raises:
        PrecisionError: no name, or an unknown one.
    """
    if not names:
        raise PrecisionError("no precision was asked for; --quant none is the checkpoint as it is")
    return tuple({spec.name: spec for spec in map(find_precision, names)}.values())
