"""Unlearning methods: one small file each, found by listing the folders beside this file.

A forget loss (``ga``) combines with a retain term (``ga_gdr``), with a way to make the gradient of
a step, and with a mask (``ga_gdr_sure``); any but a mask with LoRA (``ga_gdr_lora``). A whole
method (``tv``) has a procedure of its own. See docs/add-a-method.md.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.methods.base import About
from unlearnbench.methods.options import Field, Value, fields_of
from unlearnbench.methods.rows import Role, Tensor

__all__ = ["combine_rule", "FOLDERS", "Method", "Piece", "find_method", "method_names", "pieces"]

Kind = Literal["forget", "retain", "steps", "masks", "whole"]
KINDS: tuple[Kind, ...] = get_args(Kind)

FOLDERS: list[Path] = [Path(__file__).parent]
"""Where method files are: in ``forget/``, ``retain/``, ... of each."""


@dataclass(frozen=True)
class Piece:
    """One method file, and once it is chosen its numbers."""

    kind: Kind
    module: Any
    about: About
    fields: tuple[Field, ...]
    """Its options, with their defaults and bounds."""
    options: Any = None

    def hook(self, name: str) -> Callable[..., Any] | None:
        """A function of the file, given the piece's options last; None where it has none."""
        found = getattr(self.module, name, None)
        return None if found is None else lambda *given: found(*given, self.options)

    @property
    def alternatives(self) -> int:
        """How many other answers its loss reads beside each forget row."""
        count = self.hook("alternatives")
        return self.about.alternatives if count is None else int(count())


@dataclass(frozen=True)
class Method:
    """A method by its pieces."""

    name: str
    pieces: tuple[Piece, ...]
    lora: bool = False

    def piece(self, kind: Kind) -> Piece | None:
        """The one of a kind."""
        return next((piece for piece in self.pieces if piece.kind == kind), None)

    @property
    def stage(self) -> str | None:
        """The training that makes the output; None where it is made without."""
        whole = self.piece("whole")
        return whole.about.stage if whole else "unlearn" if self.pieces else "finetune"

    @property
    def terms(self) -> tuple[Piece, ...]:
        """What its loss is made of: the forget loss and the terms on other texts."""
        return tuple(piece for piece in self.pieces if piece.kind in ("forget", "retain"))

    @property
    def reads(self) -> frozenset[Role]:
        """Whose rows its loss reads."""
        held = (piece.about.reads for piece in self.terms if piece.kind == "retain")
        return frozenset({"forget", "alternatives", *held})

    @property
    def data(self) -> frozenset[Role]:
        """The sets that it learns from beside the forget set."""
        return frozenset(role for piece in self.pieces for role in piece.about.data)

    @property
    def may(self) -> frozenset[Role]:
        """Those that it learns from where they are given."""
        return frozenset(role for piece in self.pieces for role in piece.about.may)

    @property
    def takes_alternatives(self) -> Literal["yes", "no", "instead"]:
        """Whether it reads other answers that it does not make itself; ``instead``: of the retain
        set, where they are given.
        """
        piece = self.piece("forget") or self.piece("whole")
        if piece is None or not piece.alternatives or piece.hook("examples"):
            return "no"
        return "yes" if piece.kind == "forget" else "instead"

    @property
    def numbers(self) -> dict[str, Value]:
        """The value of every option, in the order of their names."""
        found = {f.name: getattr(p.options, f.name) for p in self.pieces for f in p.fields}
        return dict(sorted(found.items()))

    def with_options(self, asked: Mapping[str, object]) -> Method:
        """The method with its defaults, changed by what was asked for; of two pieces with one
        option, the later says its default and bounds, but for a loss with a term of its own. Raises
        OptionError where the method does not read an option, or it cannot have such a value.
        """
        inner = sorted(self.pieces, key=lambda piece: bool(piece.about.term))
        fields = {field.name: field for piece in inner for field in piece.fields}
        for name in asked:
            if name not in fields:
                own = ", ".join(field.flag[2:] for field in fields.values()) or "none"
                flag = f"--{name.replace('_', '-')}"
                raise OptionError(f"{flag} means nothing to {self.name}; its own options: {own}")
        values = {n: f.check(asked[n]) if n in asked else f.default for n, f in fields.items()}
        chosen = [
            replace(p, options=p.about.options(**{f.name: values[f.name] for f in p.fields}))
            for p in self.pieces
        ]
        return replace(self, pieces=tuple(chosen))


@cache
def _load(path: Path, kind: str) -> ModuleType:
    name = f"{__name__}.{kind}.{path.stem}"
    if path.parent.parent == Path(__file__).parent:
        return importlib.import_module(name)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # noqa: S101, PT018 - the file was listed
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where a dataclass looks its types up
    spec.loader.exec_module(module)
    return module


def pieces() -> dict[str, Piece]:
    """Every method file of ``FOLDERS`` by name, in the order of their names."""
    found = {}
    for folder, kind in itertools.product(FOLDERS, KINDS):
        for path in (folder / kind).glob("[!_]*.py"):
            module: Any = _load(path, kind)
            about: About = module.ABOUT
            found[about.name] = Piece(kind, module, about, fields_of(about.options))
    return dict(sorted(found.items()))


def combine_rule(method: str, numbers: Mapping[str, float]) -> Callable[[Sequence[Tensor]], Tensor]:
    """How a whole method's output of several models makes one model's logits. Raises
    CheckpointError where no such method is known, or its output is one model.
    """
    piece = pieces().get(method)
    if piece is None or not hasattr(piece.module, "combine"):
        raise CheckpointError(
            f"these checkpoints answer together as the method {one_line(method, 60)!r} says, which "
            "is not known here"
        )
    rule = piece.module.combine
    return lambda logits: rule(logits, numbers)


def _combinations() -> dict[str, tuple[Piece, ...]]:
    """Every method by name, without the ``_lora`` ones. A way to make a gradient or a mask goes
    with a method that holds something in place.
    """
    known = pieces().values()

    def of(kind: Kind, reads: Role = "retain") -> list[Piece]:
        return [piece for piece in known if piece.kind == kind and piece.about.reads == reads]

    retain, auxiliary = [None, *of("retain")], [None, *of("retain", "auxiliary")]
    ways = [None, *of("steps")], [None, *of("masks")]
    held = itertools.product(of("forget"), retain, auxiliary, *ways)
    fine = (p for p in held if any(p[1:3]) or not any(p[3:]))
    parts = [p for p in fine if p[0].about.term in ("", p[1] and p[1].about.name)]
    named = {_name(p[0].about.term, p): tuple(filter(None, p)) for p in parts}
    return named | {piece.about.name: (piece,) for piece in of("whole")}


def _name(own: str, parts: Sequence[Piece | None]) -> str:
    """A method's name by its pieces; a term of the loss' ``own`` goes without saying."""
    return "_".join(p.about.name for p in parts if p is not None and p.about.name != own)


def method_names() -> tuple[str, ...]:
    """The names of all methods: every combination, without the ``_lora`` ones."""
    return tuple(sorted(_combinations()))


def find_method(name: str) -> Method:
    """Return the method called ``name``, as npo_klr, ga_gdr_sure, tv or npo_gdr_lora. Raises
    OptionError where it is unknown (near names are suggested), or a mask is to go with LoRA.
    """
    known, base = _combinations(), name.removesuffix("_lora")
    if base not in known:
        near = difflib.get_close_matches(name, sorted(known), n=3)
        near = near or sorted(n for n, found in known.items() if len(found) == 1)
        raise OptionError(f"unknown method {one_line(name, 60)!r}; known: {', '.join(near)}")
    method = Method(name, known[base], base != name)
    if method.lora and method.piece("masks"):
        raise OptionError(f"{name}: a mask chooses weights to train, and LoRA trains none of them")
    return method.with_options({})
