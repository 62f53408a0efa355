"""The command line's options, made from the fields of option models, and the other ways to give
them: a YAML file, and variables of the environment.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from tempfile import TemporaryFile
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click
from pydantic import Field, model_validator

from unlearnbench.errors import OptionError, one_line
from unlearnbench.lm_eval.arguments import read_pairs
from unlearnbench.util.files import writing
from unlearnbench.util.validation import OptionModel, read_yaml

F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=OptionModel)

log = logging.getLogger("unlearnbench")
_PREFIX = "UNLEARNBENCH_"


class _Pairs(click.ParamType[Any]):
    """``key=value,...`` as lm-eval takes it, or a mapping from a YAML file."""

    name = "pairs"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, object]:
        if isinstance(value, Mapping):
            return {str(key): inner for key, inner in value.items()}
        return read_pairs(str(value), param.opts[0] if param is not None else "this option")


PAIRS = _Pairs()


def make_option(
    name: str,
    kind: Any,
    default: object,
    help: str,
    metavar: str | None = None,
    also: str | None = None,
) -> click.Option:
    """The option ``--NAME`` whose values are of ``kind``: text, a number, a flag, one of the words
    of a Literal, several of these (a tuple), pairs (a mapping), or None where it is not given.

    also: a second spelling.
    """
    shape = _shape(kind)
    if default in (None, (), {}):
        default = [] if shape.get("multiple") else None
    elif not isinstance(default, (bool, int, float)):
        default = str(default)
    shown = default is not None and default is not False and default != []
    spelled = f"--{name.replace('_', '-')}"
    if kind == bool | None:  # not given, it is neither
        spelled += f"/--no-{spelled[2:]}"
    spellings = [spelled, *([also] if also else []), name]
    return click.Option(
        spellings, default=default, show_default=shown, help=help, metavar=metavar, **shape
    )


def _shape(kind: Any) -> dict[str, Any]:
    """What click has to know of a type. It reads numbers and words; all else is the model's."""
    inner = [part for part in get_args(kind) if part is not NoneType]
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _shape(inner[0]) if len(inner) == 1 else {}
    if origin is Literal:
        return {"type": click.Choice(inner)}
    if origin is tuple:
        return {"multiple": True}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": PAIRS}
    if kind is bool:
        return {"is_flag": True}
    return {"type": kind} if kind in (int, float) else {}


def field_options(
    model: type[OptionModel], without: Collection[str] = (), also: Mapping[str, str] = {}
) -> Callable[[F], F]:
    """An option for every field of ``model``, its own ones before those of the classes it extends.

    without: fields that are left out. also: second spellings, by field.
    """
    made = []
    for name in dict.fromkeys([*model.__annotations__, *model.model_fields]):
        if name in without or name not in model.model_fields:
            continue
        kind = model.model_fields[name]
        text = " ".join((kind.description or "").split())
        option = make_option(name, kind.annotation, kind.default, text, kind.title, also.get(name))
        made.append(option)

    def add(command: F) -> F:
        # Where click.option puts what it makes, the last first.
        vars(command).setdefault("__click_params__", []).extend(reversed(made))
        return command

    return add


def taken(model: type[M], given: dict[str, Any]) -> M:
    """The options of ``model`` out of those that a command was given; they are taken from it.

    Raises:
        OptionError: a value makes no sense.
    """
    found = {name: given.pop(name) for name in list(given) if name in model.model_fields}
    return model.of({name: value for name, value in found.items() if value is not None})


def retired(
    option: str, why: str, name: str | None = None, is_flag: bool = True
) -> Callable[[F], F]:
    """An option of an earlier release, which ``name`` is in files: it does nothing and says so."""

    def tell(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value:
            log.warning("%s: it has gone: %s", option, why)

    names = [option, *([name] if name else [])]
    return click.option(*names, is_flag=is_flag, hidden=True, expose_value=False, callback=tell)


verbose_option = click.option(
    "--verbose", is_flag=True, expose_value=False, help="Show the traceback of an error."
)  # main reads it, where errors are shown


class PushOptions(OptionModel):
    """Where to push what a command has made, if anywhere."""

    push_to_hub: str | None = Field(default=None, title="REPO")
    """Push to this data set repository; off by default."""

    push_dry_run: bool = False
    """Only show what would leave the machine."""

    push_public: bool = False
    """A new repository is public, not private."""

    @model_validator(mode="after")
    def _can_be_pushed(self) -> PushOptions:
        if self.push_to_hub is None:
            if self.push_dry_run or self.push_public:
                raise ValueError("--push-dry-run and --push-public need --push-to-hub REPO")
            return self
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        try:
            validate_repo_id(self.push_to_hub)
        except HFValidationError as error:
            raise ValueError(f"--push-to-hub: {error}") from None
        return self


def config_option(closed: Collection[str] = ()) -> Callable[[F], F]:
    """``--config FILE``: a YAML file of the command's options, but those that are ``closed``."""
    closed = {"config", "help", "version", *closed}

    def read(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is None or ctx.resilient_parsing:
            return
        known = {p.name: p for p in ctx.command.get_params(ctx) if isinstance(p, click.Option)}
        file, found = read_yaml(Path(value)), dict[str, Any]()
        for key, given in file.value.items():
            name, shown = key.replace("-", "_"), one_line(key, 80)
            if name not in known or name in closed:
                raise OptionError(f"{file.where(key)}: no option is called {shown!r}")
            option = known[name]
            if given is None:
                raise OptionError(f"{file.where(key)}: {shown} has no value; leave it out")
            if isinstance(given, Mapping) and option.type is not PAIRS:
                raise OptionError(f"{file.where(key)}: {shown} takes no mapping")
            if isinstance(given, list) and not option.multiple:
                raise OptionError(f"{file.where(key)}: {shown} takes one value")
            found[name] = [given] if option.multiple and not isinstance(given, list) else given
        ctx.default_map = {**(ctx.default_map or {}), **found}

    said = "Options by their names, in YAML; what stands here or in the environment wins."
    return click.option(
        "--config", metavar="FILE", is_eager=True, expose_value=False, callback=read, help=said
    )


def name_variables(command: click.Command) -> None:
    """Give every option of ``command`` its variable, ``UNLEARNBENCH_<OPTION>``.

    Not click's ``auto_envvar_prefix``, under which UNLEARNBENCH_VERSION or _HELP would be options.
    """
    for param in command.params:
        if isinstance(param, click.Option) and param.name != "version":
            param.envvar = _PREFIX + str(param.name).upper()


def warn_of_variables(command: click.Command) -> None:
    """One line for a variable that looks like one of ours and is none."""
    known = {str(param.envvar) for param in command.params} | {_PREFIX + "DATA"}
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            log.warning("the environment's %s names no option", one_line(name, 80))


def require_place(path: Path, remedy: str) -> None:
    """Refuse a file that could not be written, before the work for it; what is there stays."""
    with writing(path, OptionError, remedy):
        if path.exists():
            path.open("ab").close()
        else:
            TemporaryFile(dir=path.parent).close()
