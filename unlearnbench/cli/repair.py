"""The command ``repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field

from unlearnbench import conditions
from unlearnbench.checkpoints.options import ASKING, LoadOptions
from unlearnbench.cli.options import field_options, require_place, taken, verbose_option
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.errors import OptionError, PrecisionError, one_line, printable
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.files import write_text, writing
from unlearnbench.util.validation import OptionModel

_REPORT = "rtn-int8,rtn-int5,rtn-int4,rtn-int4-g64,bnb-nf4,bnb-fp4,gguf-q4_0"


class RepairOptions(OptionModel):
    """How a checkpoint is mended."""

    strategy: Literal["concentrated", "grid", "floor"] = "concentrated"
    """concentrated: the target's weights, but for a few that take a whole step. grid: all weights
    on the precision's levels, some a step farther than rounding takes them. floor: each change is
    raised to what gives another code, or dropped.
    """
    strength: float | None = Field(default=None, gt=0, le=4, title="SHARE")
    """Of the update's projection, that is to be left after rounding; concentrated counts the noise
    of its steps to it; with floor, the update's factor. Default: 1.5 with concentrated, else 1.
    """
    weights_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """What is written; auto: as the model's tensors are stored."""


@click.command("repair")
@click.option("--model", required=True, metavar="PATH|ID", help="The unlearned checkpoint.")
@click.option("--target", required=True, metavar="PATH|ID", help="The checkpoint it came from.")
@click.option("--out", required=True, metavar="DIR", help="Gets the mended checkpoint.")
@click.option(
    "--for",
    "names",
    multiple=True,
    default=("rtn-int4",),
    show_default=True,
    metavar="NAMES",
    help="Precisions.",
)
@field_options(RepairOptions)
@click.option("--report", metavar="FILE", help="Write the table's figures as JSON.")
@click.option(
    "--quant",
    multiple=True,
    metavar="NAMES",
    help=f"What the table is of; default: of {_REPORT} those that fit.",
)
@field_options(LoadOptions, without={"adapter", "tokenizer", *ASKING})
@verbose_option
def repair_model(
    model: str,
    target: str,
    out: str,
    names: tuple[str, ...],
    report: str | None,
    quant: tuple[str, ...],
    **given: Any,
) -> None:
    """Mend an unlearned checkpoint, so that what it forgot stays forgotten when it is quantized.

    Needs the two checkpoints alone: no data, no training, no GPU. What rounding would lose of the
    update is carried by few weights that move by whole steps (docs/repair.md).
    """
    from unlearnbench.repair.job import RepairJob, repair
    from unlearnbench.repair.method import STRENGTHS
    from unlearnbench.repair.report import report_json, report_table

    options = taken(RepairOptions, given)
    job = RepairJob(
        model=model,
        target=target,
        out=Path(out),
        precisions=_specs("--for", names),
        report=_specs("--quant", quant or (_REPORT,)),
        loose=not quant,
        load=taken(LoadOptions, given),
        strategy=options.strategy,
        strength=options.strength or STRENGTHS[options.strategy],
        dtype=options.weights_dtype,
        progress=True,
    )
    place = Path(report) if report is not None else None
    if place is not None:
        require_place(place, "give another --report")
    try:
        totals = repair(job)
    except KeyboardInterrupt:
        raise click.Abort from KeyboardInterrupt("interrupted; nothing was written")
    click.echo(printable(report_table(totals, job.precisions)))
    if place is not None:
        with writing(place, remedy="the checkpoint is written; give another --report"):
            write_text(place, report_json(job, totals))
    click.echo(one_line(f"\n{out}: mended for {', '.join(spec.name for spec in job.precisions)}"))


def _specs(option: str, names: tuple[str, ...]) -> tuple[ConditionSpec, ...]:
    """Precisions that can be mended for, or told of, and whose libraries are here."""
    asked = [name for part in names for name in split_names(part)]
    if not asked:
        raise OptionError(f"{option} names no precision")
    specs = conditions.resolve(asked)
    for spec in specs:
        told = conditions.has_codes(spec) if option == "--quant" else conditions.has_levels(spec)
        if not told:
            kinds = "rtn, bnb, gguf (but -imat) or hqq precisions"
            what = "codes do not follow" if option == "--quant" else "levels do not follow"
            raise PrecisionError(
                f"{option} {spec.name}: its {what} from the weights alone; use {kinds}"
            )
        reason = spec.missing()
        if reason:
            raise PrecisionError(f"{spec.name} cannot run here: {reason}")
    return specs
