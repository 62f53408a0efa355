"""The command ``compare``: what a condition brings back, against the target and the retrained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.cli.options import verbose_option
from unlearnbench.errors import printable
from unlearnbench.lm_eval.tables import utility_table
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.recovery.reports import recovery_table
from unlearnbench.util.files import write_text

_CAPTION = """
95% paired bootstrap intervals. *: the change holds after Holm's correction. recovered: share of
what the target, at that precision, knows more. collapsed: utility below {floor:g}. target forgets:
at that precision the target keeps less than half of its own score, or is not 5 points above the
unlearned model: no share."""


@click.command("compare")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--target", required=True, metavar="RUN|FOLDER", help="Runs of the target model.")
@click.option("--retrained", required=True, metavar="RUN|FOLDER", help="Of the retrained model.")
@click.option("--json", "json_file", metavar="FILE", help="Write the rows as JSON.")
@click.option(
    "--utility-floor",
    type=click.FloatRange(0, 1),
    default=UTILITY_FLOOR,
    show_default=True,
    metavar="SHARE",
    help="Below this share of the target's retained knowledge a model counts as collapsed.",
)
@verbose_option
def compare_runs(
    runs: Sequence[str], target: str, retrained: str, json_file: str | None, utility_floor: float
) -> None:
    """Show what quantizing brings back, against the target and the retrained model.

    RUN is a run folder, or a folder with runs below it; each checkpoint needs its run at `none`,
    and the target one at every precision of the others.
    """
    opened = open_comparison([Path(r) for r in runs], Path(target), Path(retrained), utility_floor)
    utilities = utility_table([*opened.entries, opened.target, opened.retrained])
    rows = compare(opened)
    if json_file is not None:
        content = [row.model_dump(mode="json", exclude_none=True) for row in rows]
        write_text(Path(json_file), json.dumps(content, indent=2, allow_nan=False) + "\n")
    click.echo(printable(recovery_table(rows)))
    click.echo(_CAPTION.format(floor=opened.floor))
    if utilities:
        click.echo(printable(f"\nGeneral ability, by lm-eval:\n{utilities}"))
