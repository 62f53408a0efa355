"""The command ``import``: another tool's result folders as runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.cli.quants import precision_name
from unlearnbench.errors import printable
from unlearnbench.importing import ImportOptions, import_runs


@click.command("import")
@click.argument("folder", metavar="DIR")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["muse", "lm-eval", "open-unlearning"]),
    required=True,
    help="Whose results they are.",
)
@click.option("--task-prefix", required=True, metavar="NAME", help="news, books or another group.")
@click.option("--out", required=True, metavar="RUN_DIR", help="Where the run folders go.")
@click.option(
    "--quant", default="unknown", show_default=True, metavar="NAME", help="What was measured."
)
@click.option("--include-path", multiple=True, metavar="DIR", help="More task files; repeatable.")
def import_command(
    folder: str, kind: str, task_prefix: str, out: str, quant: str, include_path: Sequence[str]
) -> None:
    """Turn another tool's result folders into runs, rescored from their outputs.

    Writes RUN_DIR/<model>/<precision>/run.json for each model, and shows where our score differs
    from the stated one.
    """
    options = ImportOptions(
        kind,  # type: ignore[arg-type]  # click has checked it
        Path(folder),
        task_prefix,
        Path(out),
        precision_name(quant),
        tuple(map(Path, include_path)),
    )
    for path, result in import_runs(options):
        click.echo(printable(f"{path}: {', '.join(result.tasks)}"))
        differences = result.imported.differences if result.imported else {}
        for name, difference in differences.items():
            click.echo(printable(f"  {name}: ours is {difference:+.6g} of the stated figure"))
