"""The command ``fairness``: are two groups told apart by errors, and what evens that out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from unlearnbench.errors import printable
from unlearnbench.metrics.intervals import Estimate
from unlearnbench.util.files import write_text
from unlearnbench.util.text import text_table


@click.command("fairness")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--task", required=True, metavar="NAME", help="A task of the kind multiple_choice.")
@click.option("--positive", required=True, metavar="TEXT", help="Which of its two choices is 1.")
@click.option("--groups", required=True, metavar="FILE", help="The task's rows with their groups.")
@click.option("--group-field", default="group", show_default=True, metavar="NAME")
@click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")
@click.option("--json", "json_file", metavar="FILE", help="Write the figures as JSON.")
def fairness(
    runs: Sequence[str],
    task: str,
    positive: str,
    groups: str,
    group_field: str,
    seed: int,
    json_file: str | None,
) -> None:
    """Are two groups treated alike, and what evens it out (FairSISA).

    RUN: finished runs of an ensemble's shards, each evaluated by itself, or of one model. Their
    decisions are held against equalized odds, as they are and corrected in three ways.
    """
    from unlearnbench.evaluation.fairness import TwoGroups, read_votes
    from unlearnbench.metrics.fairness import compare_ways

    asked = TwoGroups(task, positive, Path(groups), group_field)
    votes = read_votes([Path(run) for run in runs], asked)
    found = compare_ways(votes, seed)
    if json_file is not None:
        told = {way: asdict(figures) for way, figures in found.items()}
        content = {
            "task": task,
            "groups": votes.names,
            "models": len(runs),
            "seed": seed,
            "ways": told,
        }
        write_text(Path(json_file), json.dumps(content, indent=2) + "\n")
    head = ["decisions", "accuracy", "gap", "mean gap"]
    head += [f"{rate} {name}" for rate in ("TPR", "FPR") for name in votes.names]
    rows = [
        [way, _shown(f.accuracy), _shown(f.gap), f"{100 * f.mean_gap:.1f}"]
        + [f"{100 * rate:.1f}" for rate in f.rates.values()]
        for way, f in found.items()
    ]
    click.echo(printable(text_table(rows, head)))
    half = len(votes.ids) // 2
    models = f"{len(runs)} model{'s' if len(runs) > 1 else ''}"
    click.echo(f"{models}; rules fitted on about {half} rows, judged on the others")


def _shown(found: Estimate) -> str:
    ci = "" if found.ci is None else f" [{100 * found.ci[0]:.1f}, {100 * found.ci[1]:.1f}]"
    return f"{100 * found.value:.1f}{ci}"
