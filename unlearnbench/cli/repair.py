"""The command ``repair``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click
from pydantic import Field

from unlearnbench import conditions
from unlearnbench.checkpoints.options import ASKING, LoadOptions
from unlearnbench.cli.options import field_options, taken, verbose_option
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.errors import OptionError, PrecisionError, one_line, printable
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.files import write_text
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
    "--for", "names", default="rtn-int4", show_default=True, metavar="NAMES", help="Precisions."
)
@field_options(RepairOptions)
@click.option("--report", metavar="FILE", help="Write the table's figures as JSON.")
@click.option(
    "--quant", default=_REPORT, show_default=True, metavar="NAMES", help="What the table is of."
)
@field_options(LoadOptions, without={"adapter", "tokenizer", *ASKING})
@verbose_option
def repair_model(
    model: str, target: str, out: str, names: str, report: str | None, quant: str, **given: Any
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
        precisions=_specs(names),
        report=_specs(quant),
        load=taken(LoadOptions, given),
        strategy=options.strategy,
        strength=options.strength or STRENGTHS[options.strategy],
        dtype=options.weights_dtype,
        progress=True,
    )
    totals = repair(job)
    click.echo(printable(report_table(totals)))
    if report is not None:
        write_text(Path(report), report_json(job, totals))
    click.echo(one_line(f"\n{out}: mended for {', '.join(spec.name for spec in job.precisions)}"))


def _specs(names: str) -> tuple[ConditionSpec, ...]:
    """Precisions whose levels follow from a weight alone, and whose libraries are here."""
    specs = conditions.resolve(split_names(names))
    for spec in specs:
        if not conditions.has_levels(spec):
            raise PrecisionError(
                f"repair does not know the levels of {spec.name}; use rtn, bnb, gguf or hqq "
                "precisions"
            )
        reason = spec.missing()
        if reason:
            raise PrecisionError(f"{spec.name} cannot run here: {reason}")
    if not specs:
        raise OptionError("no precision was named")
    return specs
