"""The options of method files: their bounds, and that files that share a name agree on it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from unlearnbench.errors import OptionError
from unlearnbench.methods import find_method, pieces
from unlearnbench.methods.options import fields_of, option


@dataclass(frozen=True)
class Options:
    number: float = option(1.0, "A number.", above=0, most=2)
    count: int = option(3, "A count.", least=1)
    word: Literal["a", "b"] = option("a", "A word.")
    path: str = option("", "A file.")
    on: bool = option(False, "A switch.")


FIELDS = {field.name: field for field in fields_of(Options)}


def test_defaults_are_filled_in_and_whole_numbers_are_numbers() -> None:
    assert find_method("npo_gdr").numbers == {"beta": 0.1, "retain_weight": 1.0}
    found = find_method("npo_gdr").with_options({"beta": 2}).numbers
    assert found == {"beta": 2.0, "retain_weight": 1.0}
    assert isinstance(found["beta"], float)
    for name, value in (("on", True), ("path", "x"), ("word", "b"), ("count", 1), ("number", 2.0)):
        assert FIELDS[name].check(value) is value


@pytest.mark.parametrize(
    ("name", "value", "use"),
    [
        ("number", 0, "a number above 0, at most 2"),
        ("number", 2.1, "a number above 0, at most 2"),
        ("number", math.nan, "a number"),
        ("number", math.inf, "a number"),
        ("number", "1", "a number"),
        ("number", True, "a number"),
        ("count", 0, "a whole number of at least 1"),
        ("count", 1.5, "a whole number"),
        ("count", True, "a whole number"),
        ("word", "c", "a or b"),
        ("word", 1, "a or b"),
        ("path", 1, "text"),
        ("on", 1, "true or false"),
    ],
)
def test_what_is_out_of_bounds_is_refused(name: str, value: Any, use: str) -> None:
    with pytest.raises(OptionError, match=f"^--{name} .*: use {use}"):
        FIELDS[name].check(value)


def test_files_that_share_an_options_name_agree_on_its_type() -> None:
    of: dict[str, set[Any]] = {}
    for piece in pieces().values():
        for field in piece.fields:
            of.setdefault(field.name, set()).add(field.type)
            assert field.help.endswith(".")
            field.check(field.default)
    assert all(len(types) == 1 for types in of.values()), of
