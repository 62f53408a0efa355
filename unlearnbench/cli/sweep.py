"""The command ``sweep``: many checkpoints under many conditions, on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import click

from unlearnbench.cli.options import verbose_option
from unlearnbench.errors import OptionError, SweepError, one_line, printable
from unlearnbench.recovery.overview import overview
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.sweep.display import Display, status
from unlearnbench.sweep.engine import undone_lines
from unlearnbench.sweep.sweep import SweepRequest, prepare, run_sweep
from unlearnbench.util.text import paint, terminal_width


@click.command("sweep")
@click.argument("file", metavar="SWEEP.yaml|status")
@click.argument("folder", metavar="[DIR|s3://...]", required=False)
@click.option("--address", metavar="auto|[ray://]HOST:PORT", help="A Ray cluster that runs.")
@click.option(
    "--local",
    type=click.IntRange(min=1),
    metavar="N",
    help="A Ray of N cores on this machine; default, without --address: all its cores.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, show the jobs, start nothing.")
@verbose_option
def sweep(
    file: str, folder: str | None, address: str | None, local: int | None, dry_run: bool
) -> None:
    """Train, evaluate, compare and build a board, as a file says, on one machine or many.

    What is done is kept: the same command goes on. Exit 2 where something could not be done; the
    rest is complete. `sweep status DIR` says from another terminal how the sweep stands whose
    file has DIR, or an address as s3://BUCKET/PREFIX, as output.
    """
    if file == "status":
        if folder is None:
            raise OptionError("sweep status: which DIR? give the file's output")
        click.echo(printable("\n".join(status(folder))))
        return
    if folder is not None:
        raise OptionError(f"sweep takes one file, and {one_line(folder, 80)} is a second")
    asked = prepare(Path(file), address, local)
    if dry_run:
        click.echo(printable("\n".join(asked.plan.lines())))
        return
    display = Display()
    try:
        progress = run_sweep(asked, display)
    except KeyboardInterrupt:
        where = asked.plan.home.where
        raise KeyboardInterrupt(
            f"interrupted; what was done is in {where}, and the same command goes on"
        ) from None
    finally:
        display.close()
    _show(asked)
    if progress.undone:
        click.echo(printable("\n".join(undone_lines(progress.undone))))
        raise SweepError(
            f"{len(progress.undone)} of {progress.total} jobs could not be done (above); the rest "
            "is complete, and the same command tries these again"
        )


def _show(asked: SweepRequest) -> None:
    """The table, and where the page is, of what this plan has made."""
    home, ids = asked.plan.home, {job.id: job for job in asked.plan.jobs}
    if "compare" in ids and (table := home.read("recovery.json")) is not None:
        rows = [RecoveryRow.model_validate(row) for row in json.loads(table)]
        floor = ids["compare"].order["utility_floor"]
        click.echo(overview(rows, floor, terminal_width(), paint))
        click.echo(printable(f"\nthe rows: {home.where}/recovery.json"))
    if "board" in ids and home.read("board/index.html") is not None:
        click.echo(printable(f"the page: {home.where}/board/index.html"))
    click.echo(printable(f"run folders: {home.where}/runs"))
