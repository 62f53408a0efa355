"""The command ``sweep``: many checkpoints under many conditions, on Ray."""

from __future__ import annotations

import json
from pathlib import Path

import click

from unlearnbench.cli.options import verbose_option
from unlearnbench.errors import SweepError, printable
from unlearnbench.recovery.overview import overview
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.sweep.display import Display, status
from unlearnbench.sweep.engine import undone_lines
from unlearnbench.sweep.sweep import SweepRequest, prepare, run_sweep
from unlearnbench.util.text import paint, terminal_width


class _Sweeps(click.Group):
    """``sweep FILE`` is ``sweep run FILE``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group("sweep", cls=_Sweeps)
def sweep() -> None:
    """Many checkpoints, many conditions: `sweep SWEEP.yaml`, and `sweep status DIR`.

    `sweep run --help` lists the options; docs/sweeps.md shows the file.
    """


@sweep.command("run")
@click.argument("file", metavar="SWEEP.yaml")
@click.option("--address", metavar="auto|HOST:PORT", help="A Ray cluster that runs.")
@click.option(
    "--local",
    type=click.IntRange(min=1),
    metavar="N",
    help="A Ray of N cores on this machine; default, without --address: all its cores.",
)
@click.option("--dry-run", is_flag=True, help="Check everything, show the jobs, start nothing.")
@verbose_option
def run(file: str, address: str | None, local: int | None, dry_run: bool) -> None:
    """Train, evaluate, compare and build a board, as a file says, on one machine or many.

    What is done is kept: the same command goes on. Exit 2 where something could not be done; the
    rest is complete.
    """
    asked = prepare(Path(file), address, local)
    if dry_run:
        click.echo(printable("\n".join(asked.plan.lines())))
        return
    display = Display()
    try:
        progress = run_sweep(asked, display)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; what was done is in {asked.plan.output}, and the same command goes on"
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
    output, ids = asked.plan.output, {job.id: job for job in asked.plan.jobs}
    table, page = output / "recovery.json", output / "board/index.html"
    if "compare" in ids and table.is_file():
        rows = [RecoveryRow.model_validate(row) for row in json.loads(table.read_bytes())]
        floor = ids["compare"].order["utility_floor"]
        click.echo(overview(rows, floor, terminal_width(), paint))
        click.echo(printable(f"\nthe rows: {table}"))
    if "board" in ids and page.is_file():
        click.echo(printable(f"the page: {page}"))
    click.echo(printable(f"run folders: {output / 'runs'}"))


@sweep.command("status")
@click.argument("folder", metavar="DIR")
@verbose_option
def show_status(folder: str) -> None:
    """How the sweep in DIR (its file's output) stands, from another terminal."""
    click.echo(printable("\n".join(status(Path(folder)))))
