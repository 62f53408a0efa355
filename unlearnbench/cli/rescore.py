"""The command ``rescore``: a finished run's figures from its records, without its model."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.errors import OptionError, printable
from unlearnbench.evaluation.grouped import by_field, grouped_json, grouped_rows
from unlearnbench.evaluation.rescore import rescore, rescored_json, rescored_rows
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions
from unlearnbench.util.files import write_text
from unlearnbench.util.text import text_table


@click.command("rescore")
@click.argument("run", metavar="RUN")
@click.option("--reference", metavar="RUN", help="The retrained model's run.")
@click.option("--json", "json_file", metavar="FILE", help="Write the figures as JSON.")
@click.option("--include-path", multiple=True, metavar="DIR", help="More task files; repeatable.")
@click.option("--by", "field", metavar="FIELD", help="A figure for every value of a rows' field.")
@click.option("--data-dir", metavar="DIR", help="Local data, for --by.")
def rescore_run(
    run: str,
    reference: str | None,
    json_file: str | None,
    include_path: Sequence[str],
    field: str | None,
    data_dir: str | None,
) -> None:
    """Compute a run's figures again from its records: no model and no data is needed.

    Of TOFU's tasks also forget quality, against a run of the retrained model, and model utility;
    PrivLeak by every attack, and the attack that reads a text's loss less the reference's.
    What run.json, or the files that it was imported from, state otherwise is listed.
    --by subject groups RWKU's rows by person, with intervals over the persons; it reads the rows.
    """
    registry = load_registry(include_path)
    if field is not None:
        if reference is not None:
            raise OptionError("--by groups one run's rows; leave --reference out")
        place = data_dir or os.environ.get("UNLEARNBENCH_DATA")
        options = DataOptions(Path(place) if place else None)
        groups = by_field(Path(run), field, registry, options)
        if json_file is not None:
            write_text(Path(json_file), json.dumps(grouped_json(groups), indent=2) + "\n")
        click.echo(printable(text_table(grouped_rows(groups), ["task", "whose", "value"])))
        return
    other = Path(reference) if reference is not None else None
    found = rescore(Path(run), other, registry)
    if json_file is not None:
        write_text(Path(json_file), json.dumps(rescored_json(found), indent=2) + "\n")
    click.echo(printable(text_table(rescored_rows(found), ["task", "figure", "value"])))
    for note in found.notes:
        click.echo(printable(f"note: {note}"))
    for name, difference in found.differences.items():
        click.echo(printable(f"{name}: ours is {difference:+.6g} of the stated figure"))
