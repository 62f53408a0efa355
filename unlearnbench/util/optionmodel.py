"""Options as a frozen pydantic model: each declared once, and refused in the command line's words.

A field's docstring is its help; its title, where it has one, stands there for the value.
``unlearnbench.cli.options`` makes the command line's options of the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from unlearnbench.errors import OptionError, one_line

M = TypeVar("M", bound="OptionModel")


class OptionModel(BaseModel):
    """Options by name."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
        use_attribute_docstrings=True,
    )

    @classmethod
    def of(cls: type[M], given: Mapping[str, object]) -> M:
        """The options that are given by name; the others are as their defaults.

        Raises:
            OptionError: no option has that name, or its value makes no sense.
        """
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            raise OptionError(_explain(error)) from None

    def updated(self: M, fields: Mapping[str, object]) -> M:
        """These options with some of them replaced.

        Raises:
            OptionError: as ``of``.
        """
        now = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).of({**now, **fields})


def _explain(error: ValidationError) -> str:
    """The first fault, after the option as the command line spells it. A message of our own that
    begins with an option says everything.
    """
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return f"no option is called {one_line(first['loc'][0], 80)!r}"
    if message.startswith("--") or not first["loc"]:
        return one_line(message, 400)
    option = f"--{str(first['loc'][0]).replace('_', '-')} {one_line(first['input'], 60)}"
    return f"{option}: {_wanted(message, first.get('ctx', {}))}"


def _wanted(message: str, bounds: Mapping[str, Any]) -> str:
    """What to use instead of a refused value."""
    for key, words in _BOUNDS.items():
        if key in bounds:
            return f"use {words.format(bounds[key])}"
    if message.startswith("Input should be "):
        wanted = message.removeprefix("Input should be ").partition(", unable")[0]
        return f"use {wanted}".replace("'", "")
    return one_line(message, 400)


_BOUNDS = {
    "ge": "{:g} or more",
    "gt": "a number above {:g}",
    "le": "at most {:g}",
    "lt": "less than {:g}",
}
