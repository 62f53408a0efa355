"""lm-eval's habits on our command line: key=value pairs, a YAML file of options, variables."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from unlearnbench.errors import OptionError, one_line

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger("unlearnbench")
_PREFIX = "UNLEARNBENCH_"
# lm-eval's names for "a transformers checkpoint", which say nothing here.
_KINDS = ("hf", "hf-auto", "huggingface", "unlearnbench")


class _Limit(click.ParamType[Any]):
    """A number of rows, or a share of them below 1."""

    name = "limit"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | float:
        try:
            number = float(value)
            whole = int(number)
        except (TypeError, ValueError, OverflowError):
            self.fail(f"{one_line(value, 60)!r} is not a number or a share", param, ctx)
        return whole if number == whole else number


class _Pairs(click.ParamType[Any]):
    """``key=value,...`` as lm-eval takes it, or a mapping from a YAML file."""

    name = "pairs"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, object]:
        from unlearnbench.lm_eval.arguments import read_pairs

        if isinstance(value, Mapping):
            return {str(key): inner for key, inner in value.items()}
        name = param.opts[0] if param is not None else "this option"
        return read_pairs(str(value), name)


LIMIT = _Limit()


def _read_config(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Make a YAML file's options the defaults; what the command line says wins."""
    if value is None or ctx.resilient_parsing:
        return
    from unlearnbench.util.yaml import read_yaml

    file = read_yaml(Path(value))
    known = {p.name: p for p in ctx.command.params if isinstance(p, click.Option)}
    defaults: dict[str, object] = {}
    for key, given in file.value.items():
        name = key.replace("-", "_")
        option = known.get(name)
        if option is None or name in ("config", "help", "version"):
            raise OptionError(f"{file.where(key)}: no option is called {one_line(key, 80)!r}")
        if given is None:
            raise OptionError(f"{file.where(key)}: {one_line(key, 80)} has no value; leave it out")
        if isinstance(given, Mapping) and not isinstance(option.type, _Pairs):
            raise OptionError(f"{file.where(key)}: {one_line(key, 80)} takes no mapping")
        if isinstance(given, list) and not option.multiple:
            raise OptionError(f"{file.where(key)}: {one_line(key, 80)} takes one value")
        defaults[name] = [given] if option.multiple and not isinstance(given, list) else given
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


_OPTIONS = (
    click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_read_config,
        help="Options by their names, in YAML; what stands here or in the environment wins.",
    ),
    click.option(
        "--model-args",
        type=_Pairs(),
        metavar="KEY=VALUE,...",
        help="As lm-eval's: pretrained=PATH,dtype=float32,load_in_4bit=True and our own.",
    ),
    click.option(
        "--gen-kwargs",
        type=_Pairs(),
        metavar="KEY=VALUE,...",
        help="In place of the tasks' own decoding; such runs stand on no board.",
    ),
    click.option(
        "--apply-chat-template", is_flag=True, help="Prompts go through the chat template."
    ),
    click.option(
        "--log-samples",
        is_flag=True,
        help="Also write samples_<task>_<date>.jsonl and results_<date>.json as lm-eval does.",
    ),
    click.option(
        "--confirm-run-unsafe-code",
        is_flag=True,
        help="Let lm-eval task files of --include-path run their own Python.",
    ),
)


def habit_options(command: F) -> F:
    """What people who come from lm-eval type."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def name_variables(command: click.Command) -> None:
    """Give every option of ``command`` its variable, ``UNLEARNBENCH_<OPTION>``.

    Not click's ``auto_envvar_prefix``, under which UNLEARNBENCH_VERSION or _HELP would be options.
    """
    for param in command.params:
        if isinstance(param, click.Option) and (param.expose_value or param.name == "config"):
            param.envvar = _variable(param)


def _variable(param: click.Parameter) -> str:
    return _PREFIX + str(param.name).upper()


def warn_of_variables(command: click.Command) -> None:
    """One line for a variable that looks like one of ours and is none."""
    known = {str(param.envvar) for param in command.params} | {_PREFIX + "DATA"}
    for name in sorted(os.environ):
        if name.startswith(_PREFIX) and name not in known:
            log.warning("the environment's %s names no option", one_line(name, 80))


def merge_model_args(ctx: click.Context, options: dict[str, Any]) -> None:
    """Put ``--model-args`` in the places of the options that they stand for.

    Raises:
        OptionError: an argument has no meaning here, or contradicts an option that was given.
    """
    given = options.pop("model_args")
    if not given:
        return
    from unlearnbench.lm_eval.arguments import translate

    for name, value in translate(given).items():
        set_already = ctx.get_parameter_source(name) not in (ParameterSource.DEFAULT, None)
        earlier = options.get(name)
        if isinstance(earlier, tuple):
            earlier = ",".join(earlier)
        if name == "model" and earlier in _KINDS:
            set_already = False
        if set_already and earlier != value:
            raise OptionError(
                f"--model-args and --{name.replace('_', '-')} contradict: "
                f"{one_line(value, 80)} and {one_line(earlier, 80)}"
            )
        options[name] = (value,) if isinstance(options.get(name), tuple) else value
