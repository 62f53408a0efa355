"""The commands on run folders: ``compare``, ``import``, ``push``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.boards.hub import describe, plan_upload, push
from unlearnbench.cli.names import full_name
from unlearnbench.cli.options import PushOptions, verbose_option
from unlearnbench.errors import printable
from unlearnbench.importing import ImportOptions, import_runs
from unlearnbench.lm_eval.tables import utility_table
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.recovery.overview import overview
from unlearnbench.recovery.reports import recovery_table, rows_json
from unlearnbench.util.files import write_text
from unlearnbench.util.text import paint, terminal_width

_CAPTION = """
95% intervals, over samples and, of several seeds, over trainings. *: the change holds after
Holm's correction. recovered: share of what the target, under that condition, knows more.
collapsed: utility below {floor:g}. target forgets: under that condition the target keeps less
than half of its own score, or is not 5 points above the unlearned model: no share."""


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
@click.option("--figure", metavar="NAME", help="Another figure, as rougeL_recall or Min-20%.")
@click.option("--per-seed", is_flag=True, help="A row for each training, not for each recipe.")
@click.option("--wide", is_flag=True, help="Every figure with its interval, a row a condition.")
@verbose_option
def compare_runs(
    runs: Sequence[str],
    target: str,
    retrained: str,
    json_file: str | None,
    utility_floor: float,
    figure: str | None,
    per_seed: bool,
    wide: bool,
) -> None:
    """Show what quantizing brings back, against the target and the retrained model.

    RUN is a run folder, or a folder with runs below it; each checkpoint needs its run at `none`,
    and the target one under every condition of the others. Trainings of one recipe that differ in
    their seed alone are one row.
    """
    paths = [Path(run) for run in runs], Path(target), Path(retrained)
    opened = open_comparison(*paths, utility_floor, figure=figure)
    utilities = utility_table([*opened.entries, opened.target, opened.retrained])
    rows = compare(opened, per_seed)
    if json_file is not None:
        write_text(Path(json_file), rows_json(rows))
    if wide:
        click.echo(printable(recovery_table(rows)))
        click.echo(_CAPTION.format(floor=opened.floor))
    else:
        click.echo(overview(rows, opened.floor, terminal_width(), paint))
    if utilities:
        click.echo(printable(f"\nGeneral ability, by lm-eval:\n{utilities}"))


@click.command("import")
@click.argument("folder", metavar="DIR")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["muse", "lm-eval", "open-unlearning", "tofu"]),
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

    Writes RUN_DIR/<model>/<condition>/run.json for each model, and shows where our score differs
    from the stated one.
    """
    options = ImportOptions(
        kind,  # type: ignore[arg-type]  # click has checked it
        Path(folder),
        task_prefix,
        Path(out),
        full_name(quant),
        tuple(map(Path, include_path)),
    )
    for path, result in import_runs(options):
        click.echo(printable(f"{path}: {', '.join(result.tasks)}"))
        differences = result.imported.differences if result.imported else {}
        for name, difference in differences.items():
            click.echo(printable(f"  {name}: ours is {difference:+.6g} of the stated figure"))


@click.command("push")
@click.argument("paths", nargs=-1, required=True, metavar="RUN|ENTRY...")
@click.option("--to", "repo", required=True, metavar="REPO", help="A data set repository.")
@click.option("--dry-run", "dry", is_flag=True, help="Only show what would leave the machine.")
@click.option("--public", is_flag=True, help="A new repository is public, not private.")
def push_command(paths: Sequence[str], repo: str, dry: bool, public: bool) -> None:
    """Push run folders and board entries to the Hugging Face hub.

    A run folder holds its prompts, targets and the model's raw outputs; --dry-run lists what goes.
    """
    given = {"push_to_hub": repo, "push_dry_run": dry, "push_public": public}
    push_paths([Path(path) for path in paths], PushOptions.of(given))


def push_paths(paths: Sequence[Path], options: PushOptions) -> None:
    """Show what leaves the machine, and push it unless that is all that was asked for. Nothing,
    where there is no repository to push to.
    """
    repo = options.push_to_hub
    if repo is None:
        return
    uploads = plan_upload(paths)
    click.echo(printable(describe(uploads, repo, not options.push_public)))
    if options.push_dry_run:
        click.echo("dry run: nothing was sent")
        return
    click.echo(printable(f"pushed: {push(uploads, repo, not options.push_public)}"))
