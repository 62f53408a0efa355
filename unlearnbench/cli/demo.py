"""The command ``demo``: forgotten knowledge comes back at 4 bits, before your eyes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench import conditions
from unlearnbench.cli.options import verbose_option
from unlearnbench.demo.meter import measured
from unlearnbench.demo.pipeline import run_demo
from unlearnbench.demo.recipe import METHODS, PRECISIONS, TASKS, DemoOptions
from unlearnbench.errors import printable
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.reports import recovery_table
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.results import FULL
from unlearnbench.tasks.registry import split_names
from unlearnbench.util.text import text_table

_TASK, _KEPT = TASKS[0], TASKS[2]
_BROKEN = "collapsed in full precision"
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
    "--out",
    metavar="DIR",
    help="Gets runs, recovery.json and index.html. [demo-out, with --dense demo-out-dense]",
)
@click.option("--dense", is_flag=True, help="The control: dense weights, unlearned in fp32.")
@verbose_option
def demo(seed: int, methods: str, quant: str, out: str | None, dense: bool) -> None:
    """Train, unlearn, quantize and compare tiny models on the spot, in some minutes.

    What is done is kept in --out: an interrupted demo goes on, a finished one is shown at once.
    """
    options = DemoOptions(
        Path(("demo-out-dense" if dense else "demo-out") if out is None else out),
        seed,
        tuple(split_names(methods)),
        tuple(spec.name for spec in conditions.resolve(split_names(quant))),
        dense,
        sys.stderr.isatty(),
    )
    click.echo(_INTRO.format(kind=_DENSE if dense else _SPARSE))
    with measured() as meter:
        path = run_demo(options, lambda line: click.echo(printable(line)))
    rows = [RecoveryRow.model_validate(row) for row in json.loads(path.read_bytes())]
    shown = [row for row in rows if row.task == _TASK]
    page = path.parent / "index.html"
    for text in (
        recovery_table(shown),
        f"\n{scores_table(rows, options.precisions)}\n",
        *summary(rows),
        f"all tasks: {path}; the page: {page}",
        f"this call {meter}, all its processes together",
    ):
        click.echo(printable(text))


def scores_table(rows: Sequence[RecoveryRow], precisions: Sequence[str]) -> str:
    """KnowMem_f and KnowMem_r of the target and each method, one figure for each precision."""
    quantized = [name for name in precisions if name != FULL]
    found = {(row.entry, row.task, row.precision): row for row in rows}
    entries = list(dict.fromkeys(row.entry for row in rows))

    def scores(model: str, task: str) -> str:
        entry = entries[0] if model == "target" else model
        own = [found[entry, task, name] for name in quantized]
        if model == "target":
            figures = [own[0].target_full, *(row.target for row in own)]
        else:
            figures = [own[0].full, *(row.quantized for row in own)]
        return " / ".join(f"{figure:.1f}" for figure in figures)

    names = " / ".join([FULL, *quantized])
    marked = {entry: f"{entry}, {_BROKEN}" for entry in collapsed(rows)}
    lines = [
        [marked.get(model, model), scores(model, _TASK), scores(model, _KEPT)]
        for model in ("target", *entries)
    ]
    return text_table(lines, ["model", f"KnowMem_f, {names}", f"KnowMem_r, {names}"])


def collapsed(rows: Sequence[RecoveryRow]) -> dict[str, str]:
    """The methods whose model has lost, in full precision, more of what should stay than the
    utility floor allows; with the scores that tell.
    """
    return {
        row.entry: f"KnowMem_r {row.full:.1f}, the target's {row.target_full:.1f}"
        for row in rows
        if row.task == _KEPT and row.full < UTILITY_FLOOR * row.target_full
    }


def summary(rows: Sequence[RecoveryRow]) -> list[str]:
    """A line for each method: how much of the forgotten answers it gives, and whether it still
    answers anything.
    """
    lines, broken = [], collapsed(rows)
    asked = [row for row in rows if row.task == _TASK]
    for entry in dict.fromkeys(row.entry for row in asked):
        own = [row for row in asked if row.entry == entry]
        scores = ", ".join(f"{row.quantized:.1f} at {row.precision}" for row in own)
        told = f"; {_BROKEN} ({broken[entry]})" if entry in broken else ""
        lines.append(f"{entry}: KnowMem_f {own[0].full:.1f} in full precision, {scores}{told}")
    target, retrained = asked[0].target_full, asked[0].retrained
    return [*lines, f"target: {target:.1f} in full precision; retrained model: {retrained:.1f}"]
