"""The commands that make models: ``unlearn`` and ``finetune``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unlearnbench.checkpoints.options import ASKING, LoadOptions
from unlearnbench.cli.options import (
    config_option,
    field_options,
    make_option,
    taken,
    verbose_option,
)
from unlearnbench.errors import OptionError, one_line
from unlearnbench.methods import find_method, pieces
from unlearnbench.methods.options import Field
from unlearnbench.tasks.registry import split_names
from unlearnbench.training.options import CorpusOptions, SelectOptions, TrainOptions
from unlearnbench.util.process import is_main

if TYPE_CHECKING:
    from unlearnbench.checkpoints.origin import Training
    from unlearnbench.training.job import Job

# What a configuration file may not set: whether to trust files, and what to do with earlier ones.
_CLOSED = {"verbose", "resume", "trust_remote_code", "allow_pickle"}
_SOURCE = "FILE|task:NAME"


class _UnlearnCommand(click.Command):
    """The command with an option for every number of every method file."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        at = next(i for i, found in enumerate(own) if found.name == "lr")
        return [*own[:at], *_method_options(), *own[at:]]


def _method_options() -> list[click.Option]:
    """One option for each name that method files use, with the help and default of each."""
    users: dict[str, list[tuple[str, Field]]] = {}
    for name, piece in pieces().items():
        for field in piece.fields:
            users.setdefault(field.name, []).append((name, field))
    made = []
    for name, found in users.items():
        texts = " ".join(dict.fromkeys(field.help for _, field in found))
        defaults = ", ".join(f"{piece} {field.default}" for piece, field in found)
        kind = found[0][1].type  # one name has one type
        made.append(make_option(name, kind, None, f"{texts}  [{defaults}]"))
    return made


_model = click.option("--model", metavar="PATH|ID", help="Checkpoint folder, .gguf file or hub id.")
_out = click.option("--out", metavar="DIR", help="Gets the new checkpoint and unlearning.json.")
_resume = click.option(
    "--resume", is_flag=True, help="Go on with an interrupted training in --out."
)
_load = field_options(LoadOptions, {"base", "adapter", "allow_adapter_base", *ASKING})


@click.command("unlearn", cls=_UnlearnCommand)
@_model
@_out
@config_option(_CLOSED)
@click.option("--method", metavar="NAME", help="As npo_klr; see `unlearnbench methods`.")
@click.option("--forget", multiple=True, metavar=_SOURCE, help="Repeatable.")
@click.option(
    "--requests",
    metavar="FILE,FILE...",
    help="Forget one after another, each from the last one's checkpoint, in --out/request-1...",
)
@click.option("--retain", multiple=True, metavar=_SOURCE, help="Repeatable.")
@click.option("--auxiliary", multiple=True, metavar=_SOURCE, help="A third set, if one is read.")
@click.option("--base", metavar="PATH|ID", help="What --model was made from, for kga, loo, sisa.")
@click.option("--unseen", multiple=True, metavar="FILE", help="Texts that the target never saw.")
@click.option(
    "--alternative",
    metavar="FILE|retain|generic|refuse|own",
    help="Other answers to what is forgotten, for the methods that read them.",
)
@click.option(
    "--spans",
    metavar="FILE|surprise|entities",
    help="Forget these parts of the texts alone: a file's, unlikely tokens, names and numbers.",
)
@click.option(
    "--anchors",
    metavar="FILE|names",
    help='For whp_ft: {"name": "stand-in", ...}, or those that --retain has not.',
)
@field_options(TrainOptions, {"l1", "pack", "shards", "slices", "placement"})
@_resume
@field_options(CorpusOptions)
@_load
@verbose_option
@field_options(SelectOptions)
def unlearn(**given: Any) -> None:
    """Make an unlearned checkpoint from a target model.

    A FILE is .jsonl, .json, .parquet (a text field, or question and answer) or .txt.
    """
    from unlearnbench.training.job import unlearn as run
    from unlearnbench.training.sequence import unlearn_each

    names = {field.name for piece in pieces().values() for field in piece.fields}
    asked = {name: given.pop(name) for name in names}
    method = _required(given, "method")
    requests = given.pop("requests")
    job = _job(given, given.pop("forget"))
    job = replace(job, forecast=partial(_forecast, method, job.select is not None))
    numbers = {n: v for n, v in asked.items() if v is not None}
    if requests is None:
        _say(run(job, method, numbers), job.out)
        return
    for place, training in unlearn_each(job, method, numbers, split_names(requests)):
        _say(training, place)


@click.command("finetune")
@_model
@_out
@config_option(_CLOSED)
@click.option("--data", multiple=True, metavar=_SOURCE, help="Repeatable.")
@field_options(TrainOptions, {"reference_dtype", "span_share", "chunk", "stop_el"})
@click.option(
    "--shard-plan", metavar="ENSEMBLE", help="Rows are where they are in this ensemble of --shards."
)
@_resume
@field_options(CorpusOptions)
@_load
@verbose_option
def finetune(**given: Any) -> None:
    """Train a model on texts: to make a target, or a retrained model.

    A FILE is .jsonl, .json, .parquet (a text field, or question and answer) or .txt.
    """
    from unlearnbench.training.job import finetune as run

    job = _job(given, given.pop("data"))
    _say(run(job), job.out)


def _job(given: dict[str, Any], texts: tuple[str, ...]) -> Job:
    from unlearnbench.evaluation.score import score_checkpoint
    from unlearnbench.training.job import Job

    corpus, select = taken(CorpusOptions, given), taken(SelectOptions, given)
    return Job(
        model=_required(given, "model"),
        out=Path(_required(given, "out")),
        forget=texts,
        retain=given.get("retain", ()),
        auxiliary=given.get("auxiliary", ()),
        unseen=given.get("unseen", ()),
        base=given.pop("base", None),  # an adapter's, to LoadOptions
        alternative=given.get("alternative"),
        spans=given.get("spans"),
        anchors=given.get("anchors"),
        shard_plan=given.get("shard_plan"),
        options=taken(TrainOptions, given),
        corpus=corpus,
        load=taken(LoadOptions, given),
        select=select if select.eval_tasks else None,
        score=partial(score_checkpoint, corpus),
        resume=given["resume"],
        progress=True,
    )


def _forecast(method: str, selects: bool, model: Any, options: TrainOptions, steps: int) -> None:
    """Say which weights the training can move, and what rounding will leave of that."""
    if not is_main():
        return
    from unlearnbench.conditions.quantize.movable import COMMON, Planned, rows_of, tell
    from unlearnbench.methods.base import inner_linears
    from unlearnbench.training.checks import can_survive
    from unlearnbench.training.steps import rates

    narrow = {"bfloat16": "bf16", "float16": "fp16"}
    own = narrow.get(str(model.dtype).removeprefix("torch."), "fp32")
    asks = options.survive is not None and options.survive_weight != 0
    planned = Planned(
        own if options.weights_dtype == "auto" else options.weights_dtype,
        rates(options, steps),
        most=selects or options.stop_el is not None,
        chunked=options.chunk is not None,
        survived=str(options.survive).split(",") if asks else (),
        can_survive=can_survive(find_method(method)),
    )
    rows = rows_of(module.weight for module in inner_linears(model).values())
    for line in tell(rows, planned, COMMON):
        click.echo(line)


def _required(given: dict[str, Any], name: str) -> str:
    if not given[name]:
        raise OptionError(f"--{name} is missing")
    return str(given[name])


def _say(training: Training, out: Path) -> None:
    if is_main():
        click.echo(one_line(f"{out}: {training.method}, {len(training.losses)} steps"))
