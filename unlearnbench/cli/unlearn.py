"""The commands that make models: ``unlearn``, ``finetune``, and ``methods``, which lists them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unlearnbench.errors import OptionError, one_line, printable

if TYPE_CHECKING:
    from unlearnbench.checkpoints.origin import Training
    from unlearnbench.results import RunResult
    from unlearnbench.training.job import Job
    from unlearnbench.training.options import SelectorOptions

Command = Callable[..., Any]


def _all(*options: Command) -> Callable[[Command], Command]:
    """Several options at once, shown in the order given."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_MODEL = (
    click.option("--model", metavar="PATH|ID", help="Checkpoint folder, .gguf file or hub id."),
    click.option("--out", metavar="DIR", help="Gets the new checkpoint and unlearning.json."),
    click.option("--config", metavar="FILE.yaml", help="Options by name; the command line wins."),
)
_TRAINING = (
    click.option("--lr", type=float, help="Learning rate of AdamW.  [1e-5]"),
    click.option("--epochs", type=float, help="Passes over the texts.  [1]"),
    click.option("--max-steps", type=int, help="Optimizer steps, instead of epochs."),
    click.option("--batch-size", type=int, help="Sequences of a step, over all processes.  [8]"),
    click.option("--micro-batch-size", type=int, help="Sequences of one forward pass."),
    click.option("--max-length", type=int, help="Tokens of a sequence.  [the context, max. 2048]"),
    click.option("--schedule", type=click.Choice(["constant", "linear", "cosine"])),
    click.option("--warmup-steps", type=int),
    click.option("--max-grad-norm", type=float, help="Clip gradients; 0: never.  [1]"),
    click.option("--weights-dtype", type=click.Choice(["auto", "fp32", "bf16"])),
    click.option("--reference-dtype", type=click.Choice(["auto", "fp32", "bf16"])),
    click.option("--lora-rank", type=int, help="Train an adapter, merged at the end."),
    click.option("--keep-adapter", is_flag=True, default=None, help="Save it unmerged."),
    click.option("--gradient-checkpointing", is_flag=True, default=None),
    click.option(
        "--qa-loss", type=click.Choice(["answer", "all"]), help="Learned tokens of pairs."
    ),
    click.option("--save-steps", type=int, help="Steps between checkpoints; 0: none.  [an epoch]"),
    click.option("--seed", type=int, help="[0]"),
    click.option("--resume", is_flag=True, help="Go on with an interrupted training in --out."),
)
_SOURCES = (
    click.option("--text-field", default="text", show_default=True, metavar="NAME"),
    click.option("--data-dir", metavar="DIR", help="Local data of tasks."),
    click.option("--include-path", multiple=True, metavar="DIR", help="More task files."),
    click.option("--allow-data-drift", is_flag=True, help="Use rows that are not the pinned ones."),
    click.option("--revision", metavar="REV", help="Hub revision of --model."),
    click.option(
        "--trust-remote-code", is_flag=True, help="Let the checkpoint run its own Python."
    ),
    click.option("--allow-pickle", is_flag=True, help="Load pickled weights (.bin)."),
    click.option("--verbose", is_flag=True, help="Show the traceback of an error."),
)
_SELECT = (
    click.option(
        "--eval-tasks",
        metavar="NAMES",
        help="Evaluate during training, and keep the first checkpoint at or below --retrained.",
    ),
    click.option("--eval-steps", type=int, help="Steps between evaluations.  [an epoch]"),
    click.option("--retrained", metavar="RUN_DIR|SCORE", help="The retrained model's run."),
    click.option("--select-task", metavar="NAME", help="The task that decides.  [*_knowmem_f]"),
    click.option("--eval-limit", type=int, help="First N rows of each split."),
    click.option("--eval-dtype", type=click.Choice(["auto", "fp32", "bf16", "fp16"])),
)
_KINDS = {"masks": "mask", "steps": "step"}
# What a configuration file may not set: where things are, and whether to trust them.
_NOT_IN_FILE = {"config", "verbose", "resume", "trust_remote_code", "allow_pickle"}


class _UnlearnCommand(click.Command):
    """The command with the options of every method file beside its own."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """As click asks for them: at every call, since the files may be others by then."""
        found = super().get_params(ctx)
        at = next(i for i, parameter in enumerate(found) if parameter.name == "lr")
        return [*found[:at], *_method_options(), *found[at:]]


def _method_options() -> list[click.Parameter]:
    """One option for each name that method files use, with the help and default of each."""
    from unlearnbench.methods import pieces
    from unlearnbench.methods.options import Field

    of: dict[str, dict[str, Field]] = {}
    for name, piece in pieces().items():
        for field in piece.fields:
            of.setdefault(field.name, {})[name] = field
    found: list[click.Parameter] = []
    for users in of.values():
        first, *_ = users.values()  # of one name, so of one type
        kind = click.Choice(first.words) if first.words else first.type
        texts = " ".join(dict.fromkeys(field.help for field in users.values()))
        defaults = ", ".join(f"{name} {field.default}" for name, field in users.items())
        found.append(click.Option([first.flag], type=kind, help=f"{texts}  [{defaults}]"))
    return found


@click.command("unlearn", cls=_UnlearnCommand)
@_all(*_MODEL)
@click.option("--method", metavar="NAME", help="As npo_klr; see `unlearnbench methods`.")
@click.option("--forget", multiple=True, metavar="FILE|task:NAME", help="Repeatable.")
@click.option("--retain", multiple=True, metavar="FILE|task:NAME", help="Repeatable.")
@click.option(
    "--auxiliary", multiple=True, metavar="FILE|task:NAME", help="A third set, where one is read."
)
@_all(*_TRAINING, *_SELECT, *_SOURCES)
@click.pass_context
def unlearn(ctx: click.Context, /, **given: Any) -> None:
    """Make an unlearned checkpoint from a target model.

    A FILE is .jsonl, .json, .parquet (a text field, or question and answer) or .txt.
    """
    from unlearnbench.methods import pieces
    from unlearnbench.training.job import unlearn as run

    options = _options(ctx, given)
    method = _required(options, "method")
    names = {field.name for piece in pieces().values() for field in piece.fields}
    numbers = {name: options[name] for name in names if options.get(name) is not None}
    _say(run(_job(options, options.get("forget") or ()), str(method), numbers), options)


@click.command("finetune")
@_all(*_MODEL)
@click.option("--data", multiple=True, metavar="FILE|task:NAME", help="Repeatable.")
@_all(*_TRAINING)
@click.option("--l1", type=float, help="Soft-threshold linear weights by lr x L1 after each step.")
@click.option(
    "--weight-noise",
    type=float,
    help="Train under noise so many int4 steps wide: what is learned survives rounding.",
)
@click.option("--pack", type=int, help="Question-answer pairs in one sequence.  [1]")
@_all(*_SOURCES)
@click.pass_context
def finetune(ctx: click.Context, /, **given: Any) -> None:
    """Train a model on texts: to make a target, or a retrained model.

    A FILE is .jsonl, .json, .parquet (a text field, or question and answer) or .txt.
    """
    from unlearnbench.training.job import finetune as run

    options = _options(ctx, given)
    _say(run(_job(options, options.get("data") or ())), options)


@click.command("methods")
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the unlearning methods, or show one: equation, source, options."""
    from unlearnbench.methods import find_method, method_names, pieces

    if name is not None:
        click.echo(printable("\n\n".join(_describe(piece) for piece in find_method(name).pieces)))
        return
    click.echo(printable("\n\n".join(_describe(piece) for piece in pieces().values())))
    click.echo("\nmethods: " + _wrapped(", ".join(method_names()), "  "))
    click.echo("each but the *_sure ones also with _lora, or --lora-rank")


def _describe(piece: Any) -> str:
    about = piece.about
    knobs = ", ".join(f"{field.flag} {field.default}" for field in piece.fields) or "none"
    lines = [
        f"{about.name} ({_KINDS.get(piece.kind, piece.kind)}): {about.title}",
        about.equation,
        f"source: {about.source}",
    ]
    lines += [f"options: {knobs}"]
    lines += [f"differs: {about.differs}"] if about.differs else []
    return "\n".join([lines[0], *(_wrapped(f"  {line}", "    ") for line in lines[1:])])


def _wrapped(text: str, indent: str) -> str:
    return textwrap.fill(text, 98, subsequent_indent=indent, break_on_hyphens=False)


def _options(ctx: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """The command line's options over the configuration file's."""
    if not given["config"]:
        return given
    from unlearnbench.training.options import read_config

    known = set(given) - _NOT_IN_FILE
    options = read_config(Path(given["config"]), known)
    for name in ("forget", "retain", "auxiliary", "data", "include_path"):
        found = options.get(name)
        if isinstance(found, str):
            options[name] = [found]
        elif found is not None and not isinstance(found, (list, tuple)):
            raise OptionError(f"--{name.replace('_', '-')} {one_line(found, 40)}: use a list")
    command = click.core.ParameterSource.COMMANDLINE
    asked = {k: v for k, v in given.items() if ctx.get_parameter_source(k) is command}
    return given | options | asked


def _required(options: dict[str, Any], name: str) -> object:
    if not options.get(name):
        raise OptionError(f"--{name.replace('_', '-')} is missing")
    return options[name]


def _job(options: dict[str, Any], texts: Any) -> Job:
    from unlearnbench.checkpoints.options import LoadOptions
    from unlearnbench.training.corpus import CorpusOptions
    from unlearnbench.training.job import Job
    from unlearnbench.training.options import TrainOptions, make_options

    names = TrainOptions.model_fields
    return Job(
        model=str(_required(options, "model")),
        out=Path(str(_required(options, "out"))),
        forget=tuple(map(str, texts)),
        retain=tuple(map(str, options.get("retain") or ())),
        auxiliary=tuple(map(str, options.get("auxiliary") or ())),
        options=make_options({n: options[n] for n in names if options.get(n) is not None}),
        corpus=CorpusOptions(
            options["data_dir"],
            tuple(options["include_path"]),
            bool(options["allow_data_drift"]),
            str(options["text_field"] or "text"),
        ),
        load=LoadOptions(
            revision=options["revision"],
            trust_remote_code=bool(options["trust_remote_code"]),
            allow_pickle=bool(options["allow_pickle"]),
        ),
        select=_select(options),
        score=partial(_score, options),
        resume=bool(options["resume"]),
        progress=True,
    )


def _select(options: dict[str, Any]) -> Any:
    from unlearnbench.tasks.registry import split_names
    from unlearnbench.training.options import SelectorOptions

    if not options.get("eval_tasks"):
        for name in ("retrained", "eval_steps", "select_task", "eval_limit", "eval_dtype"):
            if options.get(name):
                option = name.replace("_", "-")
                raise OptionError(f"--{option} is for --eval-tasks, which is missing")
        return None
    return SelectorOptions(
        tuple(split_names(options["eval_tasks"])),
        str(_required(options, "retrained")),
        options.get("eval_steps"),
        options.get("select_task"),
        options.get("eval_limit"),
        str(options.get("eval_dtype") or "auto"),
    )


def _score(options: dict[str, Any], folder: Path, select: SelectorOptions, runs: Path) -> RunResult:
    """Evaluate a checkpoint of the training, as any checkpoint is."""
    from unlearnbench.evaluation.evaluate import evaluate

    (result,) = evaluate(
        folder,
        select.tasks,
        output=runs,
        limit=select.limit,
        dtype=select.dtype,
        data_dir=options["data_dir"],
        include_path=tuple(options["include_path"]),
        allow_data_drift=bool(options["allow_data_drift"]),
    )
    return result


def _say(training: Training, options: dict[str, Any]) -> None:
    from unlearnbench.util.process import is_main

    if is_main():
        steps = len(training.losses)
        click.echo(one_line(f"{options['out']}: {training.method}, {steps} steps"))
