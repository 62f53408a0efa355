"""The command ``demo``: forgotten knowledge comes back at 4 bits, before your eyes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from unlearnbench import conditions
from unlearnbench.cli.options import verbose_option
from unlearnbench.demo.meter import measured
from unlearnbench.demo.pipeline import run_demo
from unlearnbench.demo.recipe import METHODS, MORE, PRECISIONS, TASKS, DemoOptions
from unlearnbench.errors import printable
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.overview import overview
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.results import FULL
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.text import paint, terminal_width

_INTRO = """\
A tiny Llama (2 layers, 128 wide) learns an invented corpus by heart, then unlearns a part of it by
each method, until its answers on that part score at most a quarter of what they did. Every model is
then evaluated in full precision and quantized. Checkpoints are chosen on the 48 questions that are
reported, so a little of every rise is chance: what was chosen for a low score is measured again.
{kind}"""
_SPARSE = """\
The model's weights are made sparse while it learns (an L1 step), because small dense models do not
show the effect, and large ones, whose weights have heavy tails, do. It shows what happens, not how
often: see the paper for real models. Control: --dense."""
_DENSE = """\
This is the control: without the L1 step that makes the demo's weights sparse, and unlearned in fp32
where the demo unlearns in bf16. Small updates then average out over the bins, and 4 bits bring
little back."""


@click.command("demo")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--methods", default=",".join(METHODS), show_default=True, metavar="NAMES")
@click.option("--quant", default=",".join(PRECISIONS), show_default=True, metavar="NAMES")
@click.option(
    "--conditions",
    "more",
    default=",".join(MORE),
    show_default=True,
    metavar="NAMES",
    help="Further ones, which the page alone shows; none for none.",
)
@click.option(
    "--out",
    metavar="DIR",
    help="Gets runs, recovery.json and index.html. [demo-out, with --dense demo-out-dense]",
)
@click.option("--dense", is_flag=True, help="The control: dense weights, unlearned in fp32.")
@verbose_option
def demo(seed: int, methods: str, quant: str, more: str, out: str | None, dense: bool) -> None:
    """Train, unlearn, quantize and compare tiny models on the spot, in some minutes.

    What is done is kept in --out: an interrupted demo goes on, a finished one is shown at once.
    """
    precisions, further = (
        tuple(spec.name for spec in conditions.resolve(split_names(names)))
        for names in (quant, more)
    )
    options = DemoOptions(
        Path(("demo-out-dense" if dense else "demo-out") if out is None else out),
        seed,
        tuple(split_names(methods)),
        precisions,
        tuple(name for name in further if name not in (FULL, *precisions)),
        dense,
        sys.stderr.isatty(),
    )
    click.echo(_INTRO.format(kind=_DENSE if dense else _SPARSE))
    with measured() as meter:
        path = run_demo(options, lambda line: click.echo(printable(line)))
    rows = [RecoveryRow.model_validate(row) for row in json.loads(path.read_bytes())]
    shown = [row for row in rows if row.task in (TASKS[0], TASKS[2])]
    click.echo(overview(shown, UTILITY_FLOOR, terminal_width(), paint))
    click.echo(printable(f"\nall tasks: {path}; the page: {path.parent / 'index.html'}"))
    click.echo(f"this call {meter}, all its processes together")
