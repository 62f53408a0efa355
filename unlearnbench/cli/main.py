"""The command line: parse, call, print. Exit 0 done, 2 bad input, 130 and 143 when stopped.

``unlearnbench --model ... --tasks ...`` evaluates. Everything else is a command, whose file is
imported when it is called.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import click
from click.core import ParameterSource

from unlearnbench import __version__
from unlearnbench.cli.options import (
    PAIRS,
    PushOptions,
    config_option,
    field_options,
    name_variables,
    retired,
    taken,
    verbose_option,
    warn_of_variables,
)
from unlearnbench.errors import EvaluationError, OptionError, UnlearnbenchError, one_line, printable
from unlearnbench.evaluation.options import Options
from unlearnbench.lm_eval.arguments import translate
from unlearnbench.util.process import (
    catch_stops,
    is_main,
    plain_errors,
    process_count,
    quiet_imports,
)

COMMANDS = {
    "attack": ("attack", "What brings it back, and how cheaply: a suite of conditions."),
    "check": ("check", "Hold runs against a policy: exit 0 pass, 1 fail, 2 not decided."),
    "compare": ("runs", "Show what quantizing brings back."),
    "curve": ("curve", "Show the scores of checkpoints one after another."),
    "demo": ("demo", "Train, unlearn, quantize and compare tiny models on the spot."),
    "diff": ("show", "Show what changed from one run to another, sample by sample."),
    "env": ("show", "Print what a bug report needs."),
    "fairness": ("fairness", "Are two groups treated alike, and what evens it out (FairSISA)."),
    "finetune": ("unlearn", "Train a model on texts: to make a target, or a retrained model."),
    "import": ("runs", "Turn another tool's result folders into runs."),
    "inspect": ("quants", "Will it come back? What quantization leaves of the update."),
    "leaderboard": ("boards", "Boards of entries: add one, build tables and page, verify."),
    "methods": ("methods", "List the unlearning methods by family, or show one."),
    "push": ("runs", "Push run folders and board entries to the Hugging Face hub."),
    "quants": ("quants", "List every precision, and whether it can run here."),
    "repair": ("repair", "Mend an unlearned checkpoint, so that what it forgot stays forgotten."),
    "rescore": ("rescore", "Compute a run's figures again from its records."),
    "show": ("show", "Show a run: checkpoint, condition, proof, scores, worst samples."),
    "sweep": ("sweep", "Train, evaluate, compare and build a board, as a file says."),
    "tasks": ("tasks", "List the tasks, or show one with its first prompt."),
    "unlearn": ("unlearn", "Make an unlearned checkpoint from a target model."),
}
"""The file of each command, and its line in the list of commands."""

# lm-eval's names for "a transformers checkpoint", which say nothing here.
_KINDS = ("hf", "hf-auto", "huggingface", "unlearnbench")


class _Commands(click.Group):
    """Commands that are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module = import_module(f"unlearnbench.cli.{COMMANDS[name][0]}")
        commands = (found for found in vars(module).values() if isinstance(found, click.Command))
        return next(command for command in commands if command.name == name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        # lm-eval spells its options with underscores; both spellings work here.
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
    epilog="Example: unlearnbench --model ./unlearned --quant none,8bit,4bit --tasks news",
)
@click.option("--model", metavar="PATH|ID", help="Checkpoint folder, .gguf file or hub id.")
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAMES",
    help="Task names, groups and globs, as news or rwku_*,demo_verbmem; and lm-eval's, as mmlu.",
)
@click.option(
    "--quant",
    multiple=True,
    metavar="NAMES",
    help="Precisions: none (the default), fp32, bf16, fp16, bnb-int8 (8bit), bnb-fp4 (4bit), "
    "bnb-nf4 (nf4), rtn-int8 (int8), rtn-int4 (int4) and more: unlearnbench quants.",
)
@click.option(
    "--conditions",
    multiple=True,
    metavar="NAMES",
    help="Other ways to meet the checkpoint, beside those of --quant, of which each is one.",
)
@field_options(Options, without={"progress"}, also={"output": "--output-path"})
@config_option()
@click.option(
    "--model-args",
    type=PAIRS,
    metavar="KEY=VALUE,...",
    help="As lm-eval's: pretrained=PATH,dtype=float32,load_in_4bit=True and our own.",
)
@click.option(
    "--profile", is_flag=True, help="Write trace.json to --output, and show where the time went."
)
@field_options(PushOptions)
@retired("--attention", "attention is transformers' own choice", is_flag=False)
@retired("--compile", "compiled layers were no faster (docs/speed.md)", name="compiled")
@retired("--log-samples", "every record is in the run folder already, in samples/")
@verbose_option
@click.version_option(__version__, prog_name="unlearnbench")
@click.pass_context
def cli(ctx: click.Context, /, **given: Any) -> None:
    """Does forgotten knowledge come back when the model is quantized?

    Evaluates an unlearned checkpoint on forget and retain tasks under one or more conditions and
    writes a run folder for each. `unlearnbench tasks` lists the tasks, `unlearnbench quants` the
    precisions.
    """
    if ctx.invoked_subcommand is None:
        warn_of_variables(ctx.command)
        _merge_model_args(ctx, given)
        _evaluate(given)
        return
    # `unlearnbench --include-path DIR tasks` would leave the option out without a word.
    for name in ctx.params:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise OptionError(f"{option} stands before {ctx.invoked_subcommand}; put it behind")


name_variables(cli)


def _merge_model_args(ctx: click.Context, options: dict[str, Any]) -> None:
    """Put ``--model-args`` in the places of the options that they stand for.

    Raises:
        OptionError: an argument has no meaning here, or contradicts an option that was given.
    """
    given = options.pop("model_args")
    for name, value in translate(given).items() if given else ():
        earlier = options[name]
        several = isinstance(earlier, tuple)
        if several:
            earlier = ",".join(earlier)
        is_default = ctx.get_parameter_source(name) in (ParameterSource.DEFAULT, None)
        says_nothing = is_default or (name == "model" and earlier in _KINDS)
        if not says_nothing and earlier != value:
            raise OptionError(
                f"--model-args and --{name.replace('_', '-')} contradict: "
                f"{one_line(value, 80)} and {one_line(earlier, 80)}"
            )
        options[name] = (value,) if several else value


def _evaluate(given: dict[str, Any]) -> None:
    """Evaluate and show the table; where a part failed, the table of the rest."""
    from unlearnbench.evaluation.evaluate import evaluate
    from unlearnbench.evaluation.outcome import evaluation_summary
    from unlearnbench.evaluation.workers import launched, serve
    from unlearnbench.runs.folder import run_path

    options = taken(Options, given).updated({"progress": True})
    push = taken(PushOptions, given)
    watching: AbstractContextManager[None] = nullcontext()
    model, tasks = given["model"], ",".join(given["tasks"])
    for name, value in (("model", model), ("tasks", tasks)):
        if not value:
            raise OptionError(f"--{name} is missing; see unlearnbench --help")
    conditions = ",".join([*given["quant"], *given["conditions"]] or ["none"])
    if not is_main():
        serve(options.threads)
        return
    if given["profile"]:
        from unlearnbench.cli.profile import profiling

        watching = profiling(options.output, options.device)
    try:
        with watching, launched() if process_count() > 1 else nullcontext() as team:
            results = evaluate(model, tasks, conditions, options, team=team)
    except EvaluationError as error:
        said = evaluation_summary(error.results, tasks, options, error.failures)
        click.echo(printable(said))
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; every answer so far is kept in {options.output}, and the same command "
            "(without --fresh) goes on from there"
        ) from None
    click.echo(printable(evaluation_summary(results, tasks, options)))
    if push.push_to_hub is not None:
        from unlearnbench.cli.runs import push_paths

        paths = [run_path(options.output, r.checkpoint, r.condition.name) for r in results]
        push_paths(paths, push)


class _Lines(logging.Handler):
    """Log records as single lines on standard error, above how far the work is."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = "" if record.levelno < logging.WARNING else "note: "
        line = f"{kind}{one_line(record.getMessage(), 2000)}"
        tqdm = sys.modules.get("tqdm")
        if tqdm is None:
            click.echo(line, err=True)
        else:
            tqdm.tqdm.write(line, file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its status."""
    quiet_imports()
    log = logging.getLogger("unlearnbench")
    log.handlers, log.propagate = [_Lines()], False
    log.setLevel(logging.INFO)
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command; returns its exit status. Whatever goes wrong is one line."""
    with catch_stops() as stop:
        try:
            with plain_errors():
                status = cli.main(arguments, prog_name="unlearnbench", standalone_mode=False)
            return status if isinstance(status, int) else 0
        except (KeyboardInterrupt, click.Abort) as error:
            said = [*getattr(error.__cause__, "args", ()), "interrupted; what was finished is kept"]
            click.echo(one_line(said[0], 2000), err=True)
            return stop.status
        except Exception as error:
            if "--verbose" in arguments:
                click.echo(printable(traceback.format_exc()), err=True)
            click.echo(f"unlearnbench: error: {one_line(_message(error), 2000)}", err=True)
            return 2


def _message(error: Exception) -> str:
    if isinstance(error, UnlearnbenchError):
        return str(error)
    if isinstance(error, click.UsageError):
        return f"{error.format_message().rstrip('.')} (see unlearnbench --help)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    # A bug of ours is one line too, and never exit 1, which says "check failed".
    return f"internal error: {type(error).__name__}: {error}"
