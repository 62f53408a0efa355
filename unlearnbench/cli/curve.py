"""The command ``curve``: the scores of checkpoints one after another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.cli.options import verbose_option
from unlearnbench.errors import printable
from unlearnbench.recovery.curve import curve_table, curves, curves_json
from unlearnbench.util.files import write_text


@click.command("curve")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--retrained", metavar="RUN|FOLDER", help="What PrivLeak is measured against.")
@click.option("--json", "json_file", metavar="FILE", help="Write the curves as JSON.")
@verbose_option
def curve(runs: Sequence[str], retrained: str | None, json_file: str | None) -> None:
    """Show the scores of checkpoints one after another, with 95% intervals.

    RUN is a run folder, or a folder with runs below it, in the order of the curve: the target,
    then what `unlearn --requests` made. Below one folder it is the names' numbers. The change is
    taken over the same samples.
    """
    found, left = curves([Path(run) for run in runs], Path(retrained) if retrained else None)
    if json_file is not None:
        write_text(Path(json_file), curves_json(found))
    click.echo(printable(curve_table(found)))
    for line in left:
        click.echo(printable(f"note: {line}"))
