"""The commands ``compare`` and ``import``. Light to import; each loads what it needs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unlearnbench.errors import OptionError, printable
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.util.files import write_text

if TYPE_CHECKING:
    from unlearnbench.recovery.compare import Comparison


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
@click.option("--verbose", is_flag=True, help="Show the traceback of an error.")
def compare_command(
    runs: Sequence[str],
    target: str,
    retrained: str,
    json_file: str | None,
    utility_floor: float,
    verbose: bool,
) -> None:
    """Show what quantizing brings back, against the target and the retrained model.

    RUN is a run folder, or a folder with runs below it; each checkpoint needs its run at `none`,
    and the target one at every precision of the others.
    """
    from unlearnbench.lm_eval.tables import utility_table
    from unlearnbench.recovery.compare import compare, open_comparison
    from unlearnbench.recovery.tables import recovery_table

    del verbose  # read where errors are shown
    opened = open_comparison([Path(r) for r in runs], Path(target), Path(retrained), utility_floor)
    utilities = utility_table([*opened.entries, opened.target, opened.retrained])
    rows = compare(opened)
    if json_file is not None:
        import json

        content = [row.model_dump(mode="json", exclude_none=True) for row in rows]
        write_text(Path(json_file), json.dumps(content, indent=2, allow_nan=False) + "\n")
    click.echo(printable(recovery_table(rows)))
    click.echo(_caption(opened))
    if utilities:
        click.echo(printable(f"\nGeneral ability, by lm-eval:\n{utilities}"))


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
    from unlearnbench.importing import ImportOptions, import_runs

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


def precision_name(text: str) -> str:
    """A precision's full name; ``unknown`` and names that this version lacks stay as they are."""
    import re

    from unlearnbench.conditions import quantize
    from unlearnbench.errors import PrecisionError

    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", text):
        raise OptionError("--quant takes a precision's name, as none or bnb-nf4")
    try:
        (found,) = quantize.resolve([text])
    except PrecisionError:
        return text
    return found.name


def _caption(opened: Comparison) -> str:
    return (
        "\n95% paired bootstrap intervals. *: the change holds after Holm's correction. recovered: "
        "share of what\nthe target, at that precision, knows more. collapsed: utility below "
        f"{opened.floor:g}. target forgets:\nat that precision the target keeps less than half of "
        "its own score, or is not 5 points above the\nunlearned model: no share."
    )


COMMANDS = (compare_command, import_command)
