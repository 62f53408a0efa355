"""The commands that make models: ``unlearn``, ``finetune``, and ``methods``, which lists them."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unlearnbench.errors import OptionError, one_line, printable

if TYPE_CHECKING:
    from unlearnbench.checkpoints.origin import Training
    from unlearnbench.training.run import Job

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
_METHOD = (
    click.option("--beta", type=float, help="NPO, SimNPO."),
    click.option("--gamma", type=float, help="SimNPO's margin."),
    click.option("--alpha", type=float, help="Task vector, WHP."),
    click.option("--retain-weight", type=float, help="Factor of the retain term."),
    click.option("--sure-level", type=click.Choice(["row", "module"])),
    click.option("--sure-top", type=float, help="Share of rows or modules that may change."),
    click.option("--rmu-layer", type=int, help="Decoder layer, from 0; -1: at 7/32 of the depth."),
    click.option("--rmu-scale", type=float),
    click.option("--reference-dtype", type=click.Choice(["auto", "fp32", "bf16"])),
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
_KNOBS = (
    *("beta", "gamma", "alpha", "retain_weight"),
    *("sure_level", "sure_top", "rmu_layer", "rmu_scale"),
)
# What a configuration file may not set: where things are, and whether to trust them.
_NOT_IN_FILE = {"config", "verbose", "resume", "trust_remote_code", "allow_pickle"}


@click.command("unlearn")
@_all(*_MODEL)
@click.option("--method", metavar="NAME", help="As npo_klr; see `unlearnbench methods`.")
@click.option("--forget", multiple=True, metavar="FILE|task:NAME", help="Repeatable.")
@click.option("--retain", multiple=True, metavar="FILE|task:NAME", help="Repeatable.")
@_all(*_METHOD, *_TRAINING, *_SELECT, *_SOURCES)
@click.pass_context
def unlearn(ctx: click.Context, /, **given: Any) -> None:
    """Make an unlearned checkpoint from a target model.

    A FILE is .jsonl, .json, .parquet (a text field, or question and answer) or .txt.
    """
    from unlearnbench.training.run import unlearn as run

    options = _options(ctx, given)
    method = _required(options, "method")
    knobs = {name: options[name] for name in _KNOBS if options.get(name) is not None}
    _check_knobs(knobs)
    _say(run(_job(options, options.get("forget") or ()), str(method), knobs), options)


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
    from unlearnbench.training.run import finetune as run

    options = _options(ctx, given)
    _say(run(_job(options, options.get("data") or ())), options)


@click.command("methods")
@click.argument("name", required=False)
def methods(name: str | None) -> None:
    """List the unlearning methods, or show one: equation, source, options."""
    from unlearnbench.methods import abouts, find_method, method_names

    if name is not None:
        click.echo(printable("\n\n".join(_describe(part) for part in find_method(name).parts)))
        return
    click.echo(printable("\n\n".join(_describe(about) for about in abouts())))
    click.echo("\nmethods: " + _wrapped(", ".join(method_names()), "  "))
    click.echo("each but the *_sure ones also with _lora, or --lora-rank")


def _describe(about: Any) -> str:
    knobs = ", ".join(f"--{n.replace('_', '-')} {v}" for n, v in about.knobs.items()) or "none"
    lines = [
        f"{about.name} ({about.kind}): {about.title}",
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
    for name in ("forget", "retain", "data", "include_path"):
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


def _check_knobs(knobs: dict[str, Any]) -> None:
    """Numbers from a file come unchecked, and each has its range."""
    import math

    for name, value in knobs.items():
        option = f"--{name.replace('_', '-')} {one_line(value, 40)}"
        if name == "sure_level":
            fine, use = value in ("row", "module"), "row or module"
        elif name == "rmu_layer":
            fine, use = isinstance(value, int), "a whole number"
        elif not isinstance(value, (int, float)) or not math.isfinite(value):
            fine, use = False, "a number"
        elif name == "sure_top":
            fine, use = 0 < value <= 1, "a share above 0, at most 1"
        elif name == "beta":
            fine, use = value > 0, "a number above 0"
        else:
            fine, use = value >= 0, "0 or more"
        if not fine:
            raise OptionError(f"{option}: use {use}")


def _job(options: dict[str, Any], texts: Any) -> Job:
    from unlearnbench.checkpoints.options import LoadOptions
    from unlearnbench.training.corpus import CorpusOptions
    from unlearnbench.training.options import TrainOptions, make_options
    from unlearnbench.training.run import Job

    names = TrainOptions.model_fields
    return Job(
        model=str(_required(options, "model")),
        out=Path(str(_required(options, "out"))),
        forget=tuple(map(str, texts)),
        retain=tuple(map(str, options.get("retain") or ())),
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
        resume=bool(options["resume"]),
        progress=True,
    )


def _select(options: dict[str, Any]) -> Any:
    from unlearnbench.tasks.spec import split_names
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


def _say(training: Training, options: dict[str, Any]) -> None:
    from unlearnbench.util.process import is_main

    if is_main():
        steps = len(training.losses)
        click.echo(one_line(f"{options['out']}: {training.method}, {steps} steps"))


COMMANDS = (unlearn, finetune, methods)
