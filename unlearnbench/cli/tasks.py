"""The command ``tasks``: the list of tasks, or one of them with its first prompt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.errors import one_line, printable
from unlearnbench.lm_eval import BRIDGE
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples
from unlearnbench.util.text import fitted_table

_HEAD = ["task", "groups", "metric", "want", "version", "description"]


@click.command("tasks")
@click.argument("name", required=False)
@click.option("--include-path", multiple=True, metavar="DIR", help="More task files; repeatable.")
@click.option("--data-dir", metavar="DIR", help="Local data; default: $UNLEARNBENCH_DATA.")
@click.option("--allow-data-drift", is_flag=True, help="Show rows that are not the pinned ones.")
@click.option(
    "--lm-eval-path", is_flag=True, help="Print the folder to give lm_eval as --include_path."
)
def show_tasks(
    name: str | None,
    include_path: Sequence[str],
    data_dir: str | None,
    allow_data_drift: bool,
    lm_eval_path: bool,
) -> None:
    """List the tasks, or show one with its first prompt."""
    if lm_eval_path:
        click.echo(str(BRIDGE))
        return
    registry = load_registry(include_path)
    if name is None:
        rows = [
            [t.task, ", ".join(t.tag), t.metric, t.want, f"{t.version:g}", t.description]
            for t in registry.tasks.values()
        ]
        click.echo(fitted_table(rows, _HEAD))
        return
    root = data_dir or os.environ.get("UNLEARNBENCH_DATA")
    options = DataOptions(Path(root) if root else None, allow_data_drift)
    for spec in registry.resolve([name]):
        file = registry.files[spec.task]
        click.echo(one_line(f"# {file}"))
        click.echo(printable(file.read_text(encoding="utf-8").rstrip()))
        task = load_samples(spec, options, 1)
        click.echo("\n# first prompt")
        click.echo(printable(task.samples[0].text))
