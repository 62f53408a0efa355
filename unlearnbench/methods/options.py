"""A method's numbers: fields of a frozen dataclass in its file, each with its help and its bounds.

The command line, its help, the checks and the record of a training are made from the fields.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, cast, get_args, get_type_hints

import pydantic

from unlearnbench.errors import OptionError, one_line

Bound = float | None
Value = float | int | str | bool


@dataclasses.dataclass(frozen=True)
class Field:
    """One option of one method file."""

    name: str
    type: Any
    """float, int, str, bool or a Literal of words."""
    default: Value
    help: str
    above: Bound
    """Values have to be larger."""
    least: Bound
    most: Bound

    @property
    def flag(self) -> str:
        """Its spelling on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def check(self, value: object) -> Value:
        """``value`` as the option's type. Raises OptionError where it is of another type or out of
        bounds; says what to use.
        """
        limits = pydantic.Field(gt=self.above, ge=self.least, le=self.most)
        strictly = pydantic.ConfigDict(strict=True, allow_inf_nan=False)
        kind: Any = Annotated[self.type, limits]
        try:
            return pydantic.TypeAdapter[Value](kind, config=strictly).validate_python(value)
        except pydantic.ValidationError:
            nouns = {float: "a number", int: "a whole number", str: "text", bool: "true or false"}
            noun = nouns.get(self.type) or " or ".join(get_args(self.type))
            bounds = (("above", self.above), ("of at least", self.least), ("at most", self.most))
            said = ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)
            use = f"{noun} {said}".strip()
            raise OptionError(f"{self.flag} {one_line(value, 40)}: use {use}") from None


def option(
    default: Value, help: str, *, above: Bound = None, least: Bound = None, most: Bound = None
) -> Any:
    """A field of a method's options: its default, what it does, and its bounds."""
    bounds = {"above": above, "least": least, "most": most}
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


def fields_of(options: type[Any]) -> tuple[Field, ...]:
    """The options that a class of options describes, in its order."""
    types = get_type_hints(options)
    return tuple(
        Field(field.name, types[field.name], cast(Value, field.default), **field.metadata)
        for field in dataclasses.fields(options)
    )
