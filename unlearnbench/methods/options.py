"""A method's numbers: fields of a frozen dataclass in its file, each with its help and its bounds.

The command line, its help, the checks and the record of a training are made from the fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from unlearnbench.errors import OptionError, one_line

Value = float | int | str | bool


@dataclass(frozen=True)
class Field:
    """One option of one method file."""

    name: str
    type: Any
    """float, int, str, bool or a Literal of words."""
    default: Value
    help: str
    above: float | None = None
    """Values have to be larger."""
    least: float | None = None
    most: float | None = None

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return flag(self.name)

    @property
    def words(self) -> tuple[str, ...]:
        """The words that it may be; none where any value of its type will do."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    def check(self, value: object) -> Value:
        """``value`` as the option's type.

        Raises:
            OptionError: it is of another type or out of bounds; says what to use.
        """
        checked = self._typed(value)
        if checked is None or not self._is_inside(checked):
            raise OptionError(f"{self.flag} {one_line(value, 40)}: use {self._wanted()}")
        return checked

    def _typed(self, value: object) -> Value | None:
        kind = str if self.words else self.type
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            return None
        return value if not self.words or value in self.words else None

    def _is_inside(self, value: Value) -> bool:
        if isinstance(value, (str, bool)):
            return True
        return (
            math.isfinite(value)
            and (self.above is None or value > self.above)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
        )

    def _wanted(self) -> str:
        if self.words:
            return " or ".join(self.words)
        noun = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
        bounds = (("above", self.above), ("of at least", self.least), ("at most", self.most))
        said = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        return " ".join([noun[self.type], ", ".join(said)]).strip()


def option(
    default: Value,
    help: str,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> Any:
    """A field of a method's options: its default, what it does, and its bounds."""
    bounds = {"above": above, "least": least, "most": most}
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


def flag(name: str) -> str:
    """``sure_top`` as the command line spells it."""
    return f"--{name.replace('_', '-')}"


def fields_of(options: type[Any]) -> tuple[Field, ...]:
    """The options that a class of options describes, in its order."""
    types = get_type_hints(options)
    return tuple(
        Field(field.name, types[field.name], cast(Value, field.default), **field.metadata)
        for field in dataclasses.fields(options)
    )


def checked(fields: Iterable[Field], given: Mapping[str, object]) -> dict[str, Value]:
    """The value of every field: the one given, checked, or its default.

    Raises:
        OptionError: a value is of another type or out of bounds.
    """
    return {f.name: f.check(given[f.name]) if f.name in given else f.default for f in fields}
