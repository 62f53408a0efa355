"""The command ``inspect``: do a checkpoint and its target have the same codes once quantized?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.weights import open_weights
from unlearnbench.cli.options import field_options, taken
from unlearnbench.conditions import resolve
from unlearnbench.conditions.load import require_available
from unlearnbench.conditions.quantize import overlap
from unlearnbench.errors import printable
from unlearnbench.tasks.registry import split_names


@click.command("inspect")
@click.option("--model", required=True, metavar="PATH|ID", help="The unlearned checkpoint.")
@click.option("--target", required=True, metavar="PATH|ID", help="The checkpoint it came from.")
@click.option(
    "--quant",
    default="rtn-int8,rtn-int4,bnb-int8,bnb-fp4,bnb-nf4",
    show_default=True,
    metavar="NAMES",
)
@click.option("--json", "json_file", metavar="FILE", help="Write every figure.")
@click.option("--plot", metavar="FILE", help="Draw the overlap by layer (.png, .svg, .pdf).")
@field_options(LoadOptions, without={"truncate_left"})
def inspect_bins(
    model: str, target: str, quant: str, json_file: str | None, plot: str | None, **given: Any
) -> None:
    """Will it come back? Compare quantized codes with the target's, without running a model.

    Where nearly all codes are the same, the quantized model is nearly the quantized target.
    """
    options = taken(LoadOptions, given)
    specs = resolve(split_names(quant))
    overlap.require_codes(specs)
    for spec in specs:
        require_available(spec, "cpu")
    with ExitStack() as stack:
        ours, theirs = (open_weights(path, options, stack) for path in (model, target))
        pairs = overlap.compare_codes(ours, theirs, specs)
        layers = [
            found for _, found in tqdm(pairs, total=len(ours.linear), unit="layer", disable=None)
        ]
    results = [
        overlap.PrecisionOverlap(spec.name, tuple(found[i] for found in layers))
        for i, spec in enumerate(specs)
    ]
    click.echo(printable(overlap.overlap_table(results)))
    if json_file is not None:
        overlap.write_json(Path(json_file), results, {"model": model, "target": target})
    if plot is not None:
        overlap.plot_overlap(Path(plot), results)
