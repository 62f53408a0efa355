"""Options of the command line made from the fields of a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import click
import pytest
from click.testing import CliRunner
from pydantic import Field

from unlearnbench.cli.main import COMMANDS, cli
from unlearnbench.cli.options import config_option, field_options, taken
from unlearnbench.errors import OptionError
from unlearnbench.evaluation.options import Options
from unlearnbench.util.validation import OptionModel


class Below(OptionModel):
    """What several commands have."""

    shared: str | None = None
    """Of all of them."""


class Toys(Below):
    """An option of each kind."""

    number: int = Field(default=3, ge=1)
    """A whole
    number."""
    share: float | None = Field(default=None, gt=0, title="SHARE")
    """A share."""
    word: Literal["a", "b"] = "a"
    """One of two."""
    flag: bool = False
    """Or not."""
    several: tuple[Path, ...] = ()
    """Any number."""
    pairs: Mapping[str, Any] = {}
    """Key and value."""


def made(*arguments: str) -> dict[str, Any]:
    """What a command with these options is given."""
    found: dict[str, Any] = {}

    @click.command()
    @field_options(Toys, also={"number": "--count"})
    @config_option(closed=["word"])
    def command(**given: Any) -> None:
        found.update(given)

    command.main(list(arguments), standalone_mode=False)
    return found


def test_what_is_given_becomes_the_model() -> None:
    given = ["--number", "5", "--share", "0.5", "--word", "b", "--flag", "--shared", "x"]
    found = made(*given, "--several", "p", "--several", "q", "--pairs", "a=1,b=True")
    options = taken(Toys, found | {})
    assert options == Toys(
        shared="x",
        number=5,
        share=0.5,
        word="b",
        flag=True,
        several=(Path("p"), Path("q")),
        pairs={"a": 1, "b": True},
    )
    assert taken(Toys, made()) == Toys()
    assert made("--count", "4")["number"] == 4


def test_the_rest_is_left_to_the_command() -> None:
    given = {"number": 4, "other": 1}
    assert taken(Toys, given).number == 4
    assert given == {"other": 1}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"number": 0}, "--number 0: use 1 or more"),
        ({"number": "x"}, "--number x: use a valid integer"),
        ({"share": 0}, "--share 0: use a number above 0"),
        ({"share": float("nan")}, "--share nan: use a finite number"),
        ({"word": "c"}, "--word c: use a or b"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line(given: dict[str, object], line: str) -> None:
    with pytest.raises(OptionError) as error:
        taken(Toys, dict(given))
    assert str(error.value) == line
    with pytest.raises(OptionError):
        Toys().updated(given)


def test_an_option_that_nobody_has() -> None:
    with pytest.raises(OptionError, match="no option is called 'numbr'"):
        Toys().updated({"numbr": 3})


def test_help_is_the_fields_docstrings_own_ones_first() -> None:
    command = click.Command("toys", callback=field_options(Toys)(lambda **_: None))
    command.params = list(reversed(command.callback.__click_params__))  # type: ignore[union-attr]
    said = CliRunner().invoke(command, ["--help"]).output
    assert "--number INTEGER  A whole number.  [default: 3]" in said
    assert "--share SHARE     A share." in said
    assert said.index("--number") < said.index("--shared")


def test_a_file_gives_options_but_those_that_are_closed(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("number: 7\nseveral: one\npairs: {a: [1]}\nflag: true\n", "utf-8")
    options = taken(Toys, made("--config", str(file), "--number", "8"))
    assert options == Toys(number=8, several=(Path("one"),), pairs={"a": [1]}, flag=True)
    file.write_text("word: b\n", "utf-8")
    with pytest.raises(OptionError, match=":1: no option is called 'word'"):
        made("--config", str(file))


def test_every_option_of_an_evaluation_is_on_the_command_line_and_in_the_environment() -> None:
    shown = {param.name: param for param in cli.params}
    for name, field in Options.model_fields.items():
        if name != "progress":  # which the command line always shows
            assert shown[name].envvar == f"UNLEARNBENCH_{name.upper()}"
            assert isinstance(option := shown[name], click.Option)
            assert option.help == " ".join(str(field.description).split())


@pytest.mark.parametrize("name", COMMANDS)
def test_the_list_says_of_each_command_what_its_own_help_begins_with(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.name == name
    said = " ".join(str(command.help).split())
    assert said.startswith(COMMANDS[name][1].rstrip("."))
