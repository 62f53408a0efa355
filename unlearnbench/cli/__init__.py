"""The command line: parse, call, print. Exit 0 done, 2 bad input, 130 and 143 when stopped."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unlearnbench.cli import check as cli_check
from unlearnbench.cli import compare as cli_compare
from unlearnbench.cli import demo as cli_demo
from unlearnbench.cli import leaderboard as cli_boards
from unlearnbench.cli import push as cli_push
from unlearnbench.cli import unlearn as cli_train
from unlearnbench.cli.config import (
    LIMIT,
    habit_options,
    merge_model_args,
    name_variables,
    warn_of_variables,
)
from unlearnbench.cli.options import checkpoint_options, kernel_options, running_options
from unlearnbench.cli.quants import inspect_bins, show_quants
from unlearnbench.errors import OptionError, UnlearnbenchError, one_line, printable
from unlearnbench.util.process import StopSignal, catch_stops, is_main
from unlearnbench.util.quiet import plain_errors, quiet_imports
from unlearnbench.util.version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unlearnbench.tasks.spec import Registry, TaskSpec

_SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 100,
    # lm-eval spells its options with underscores; both spellings work here.
    "token_normalize_func": lambda token: token.replace("_", "-"),
}


@click.group(
    invoke_without_command=True,
    context_settings=_SETTINGS,
    epilog="Example: unlearnbench --model ./unlearned --quant none,8bit,4bit --tasks news",
)
@click.option("--model", metavar="PATH|ID", help="Checkpoint folder, .gguf file or hub id.")
@click.option(
    "--tasks",
    multiple=True,
    metavar="NAMES",
    help="Task names, groups and globs, as news or news_*,demo_verbmem; and lm-eval's, as mmlu.",
)
@click.option(
    "--quant",
    multiple=True,
    default=["none"],
    show_default=True,
    metavar="NAMES",
    help="Precisions: none, fp32, bf16, fp16, bnb-int8 (8bit), bnb-fp4 (4bit), bnb-nf4 (nf4), "
    "rtn-int8 (int8), rtn-int4 (int4) and more: unlearnbench quants.",
)
@kernel_options
@click.option(
    "--output",
    "--output-path",
    default="results",
    show_default=True,
    metavar="DIR",
    help="Run folders.",
)
@click.option("--data-dir", metavar="DIR", help="Local data; default: $UNLEARNBENCH_DATA.")
@click.option("--include-path", multiple=True, metavar="DIR", help="More task files; repeatable.")
@click.option("--allow-data-drift", is_flag=True, help="Run on rows that are not the pinned ones.")
@click.option(
    "--limit", type=LIMIT, metavar="N|SHARE", help="First N rows of each split, or below 1 a share."
)
@click.option(
    "--batch-size",
    default="auto",
    show_default=True,
    metavar="auto|N",
    help="Prompts or texts of a batch.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", metavar="NAME", help="cpu, cuda or auto (over all GPUs); default: cuda.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Compute dtype.",
)
@click.option(
    "--protocol",
    type=click.Choice(["muse", "zhang2025"]),
    default="muse",
    show_default=True,
    help="zhang2025 samples VerbMem at temperature 0.9.",
)
@click.option(
    "--reference",
    metavar="RUN_DIR|stated",
    help="PrivLeak's zero: a run of the retrained model, or the task's stated reference.",
)
@click.option("--ppl-lower", is_flag=True, help="Also score lower-cased texts (a second pass).")
@checkpoint_options
@click.option("--fresh", is_flag=True, help="Start over; an earlier run is kept under .old.")
@habit_options
@cli_push.push_options
@running_options
@click.option("--verbose", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="unlearnbench")
@click.pass_context
def cli(ctx: click.Context, /, **options: Any) -> None:
    """Does forgotten knowledge come back when the model is quantized?

    Evaluates an unlearned checkpoint on forget and retain tasks at one or more precisions and
    writes a run folder for each. `unlearnbench tasks` lists the tasks, `unlearnbench quants` the
    precisions.
    """
    if ctx.invoked_subcommand is not None:
        _refuse_before_command(ctx)
        return
    warn_of_variables(ctx.command)
    merge_model_args(ctx, options)
    options["tasks"] = ",".join(options["tasks"])
    options["quant"] = ",".join(options["quant"])
    for name in ("model", "tasks"):
        if not options[name]:
            raise OptionError(f"--{name} is missing; see unlearnbench --help")
    del options["verbose"]  # read where errors are shown
    _evaluate(options)


def _refuse_before_command(ctx: click.Context) -> None:
    """`unlearnbench --include-path DIR tasks` would leave the option out without a word."""
    for name in ctx.params:
        if ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = "--" + name.replace("_", "-")
            raise OptionError(f"{option} stands before {ctx.invoked_subcommand}; put it behind")


def _evaluate(options: dict[str, Any]) -> None:
    from unlearnbench.evaluation import workers as parallel
    from unlearnbench.evaluation.evaluate import evaluate
    from unlearnbench.evaluation.options import read_options
    from unlearnbench.evaluation.run import run_path
    from unlearnbench.evaluation.summary import Shown, summarize_evaluation
    from unlearnbench.lm_eval.names import split_wanted
    from unlearnbench.runs.folder import RunFolder
    from unlearnbench.tasks.spec import load_registry, split_names

    if not is_main():
        parallel.serve(options["threads"])
        return
    pushing = [options.pop(key) for key in ("push_to_hub", "push_dry_run", "push_public")]
    cli_push.require_pushable(*pushing)
    log_samples = options.pop("log_samples")
    model, names, conditions = (options.pop(key) for key in ("model", "tasks", "quant"))
    given = {name: value for name, value in options.items() if value is not None}
    asked = read_options(given | {"progress": True})
    output = asked.output

    def shown() -> Shown:
        registry = load_registry(asked.include_path)
        wanted = split_wanted(split_names(names), registry, asked.include_path)
        ours = registry.resolve(wanted.ours) if wanted.ours else []
        return Shown({spec.task: spec.want for spec in ours}, bool(wanted.theirs))

    with parallel.launched() as team:
        results = summarize_evaluation(
            lambda: evaluate(model, names, conditions, asked, team=team),
            output,
            shown,
            lambda text: click.echo(printable(text)),
        )
    paths = [run_path(output, r.checkpoint, r.condition.name) for r in results]
    if log_samples:
        from unlearnbench.lm_eval.logfiles import write_log

        for folder, result in zip(paths, results, strict=True):
            for path in write_log(RunFolder(folder), result):
                click.echo(printable(str(path)))
    repo, dry, public = pushing
    if repo is not None:
        cli_push.push_paths(paths, repo, dry, public)


cli.add_command(show_quants)
cli.add_command(inspect_bins)


@cli.command("tasks")
@click.argument("name", required=False)
@click.option("--include-path", multiple=True, metavar="DIR", help="More task files; repeatable.")
@click.option("--data-dir", metavar="DIR", help="Local data; default: $UNLEARNBENCH_DATA.")
@click.option("--allow-data-drift", is_flag=True, help="Show rows that are not the pinned ones.")
@click.option(
    "--lm-eval-path", is_flag=True, help="Print the folder to give lm_eval as --include_path."
)
def show_tasks(
    name: str | None,
    include_path: Sequence[str],
    data_dir: str | None,
    allow_data_drift: bool,
    lm_eval_path: bool,
) -> None:
    """List the tasks, or show one with its first prompt."""
    from unlearnbench.tasks.spec import load_registry

    if lm_eval_path:
        from unlearnbench.lm_eval.names import BRIDGE

        click.echo(str(BRIDGE))
        return

    registry = load_registry(include_path)
    if name is None:
        click.echo(_task_list(registry))
        return
    for spec in registry.resolve([name]):
        _show_task(registry, spec, data_dir, allow_data_drift)


def _task_list(registry: Registry) -> str:
    from unlearnbench.util.text import text_table

    rows = [
        [t.task, ", ".join(t.tag), t.metric, t.want, f"{t.version:g}", t.description]
        for t in registry.tasks.values()
    ]
    head = ["task", "groups", "metric", "want", "version", "description"]
    return text_table(rows, head)


def _show_task(registry: Registry, spec: TaskSpec, data_dir: str | None, drift: bool) -> None:
    import os

    from unlearnbench.tasks.prompts import first_prompt
    from unlearnbench.tasks.rows import DataOptions, load_splits

    click.echo(one_line(f"# {registry.files[spec.task]}"))
    click.echo(printable(registry.files[spec.task].read_text(encoding="utf-8").rstrip()))
    root = data_dir or os.environ.get("UNLEARNBENCH_DATA")
    splits = load_splits(spec, DataOptions(Path(root) if root else None, drift))
    click.echo("\n# first prompt")
    click.echo(printable(first_prompt(spec, splits)))


for _module in (cli_compare, cli_check, cli_boards, cli_train, cli_demo, cli_push):
    for _command in _module.COMMANDS:
        cli.add_command(_command)
name_variables(cli)


class _Lines(logging.Handler):
    """Log records as single lines on standard error, above a progress bar where there is one."""

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
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(_run(given))


def _run(arguments: list[str]) -> int:
    with catch_stops() as stops:
        return _call(arguments, stops)


def _call(arguments: list[str], stops: StopSignal) -> int:
    try:
        with plain_errors():
            status = cli.main(arguments, prog_name="unlearnbench", standalone_mode=False)
    except UnlearnbenchError as error:
        return _fail(str(error), arguments)
    except click.UsageError as error:
        message = error.format_message().rstrip(".")
        return _fail(f"{message} (see unlearnbench --help)", arguments)
    except click.ClickException as error:
        return _fail(error.format_message(), arguments)
    except (KeyboardInterrupt, click.Abort) as error:
        said = [*getattr(error.__cause__, "args", ()), "interrupted; what was finished is kept"]
        click.echo(one_line(said[0], 2000), err=True)
        return stops.status
    except Exception as error:  # a bug of ours: still one line, and never exit 1, "check failed"
        return _fail(f"internal error: {type(error).__name__}: {error}", arguments)
    return status if isinstance(status, int) else 0


def _fail(message: str, arguments: list[str]) -> int:
    if "--verbose" in arguments:
        click.echo(printable(traceback.format_exc()), err=True)
    click.echo(f"unlearnbench: error: {one_line(message, 2000)}", err=True)
    return 2
