"""``unlearnbench attack``: a suite of conditions over the three checkpoints in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from unlearnbench import conditions
from unlearnbench.cli.options import field_options, taken, verbose_option
from unlearnbench.errors import EvaluationError, OptionError, printable
from unlearnbench.evaluation.options import Options
from unlearnbench.recovery.attacks import SUITES, attack_table, attacks, plot_attacks
from unlearnbench.results import FULL, RunResult
from unlearnbench.tasks.registry import load_registry, split_names

_CAPTION = """
Points with 95% intervals, the largest gain first. control: the retrained model before and after;
it never knew, so what it gains is taught or luck. share: of what the target, under that condition,
knows more; what the control gains is taken off where a condition may teach."""


@click.command("attack")
@click.option("--model", required=True, metavar="PATH|ID", help="The unlearned checkpoint.")
@click.option("--target", required=True, metavar="PATH|ID", help="The model before unlearning.")
@click.option("--retrained", required=True, metavar="PATH|ID", help="The one that never knew.")
@click.option(
    "--suite",
    type=click.Choice([*SUITES]),
    default="quick",
    show_default=True,
    help="Which conditions: quick takes minutes for a small model.",
)
@click.option("--conditions", "names", metavar="NAMES", help="These, in place of a suite.")
@click.option("--tasks", required=True, metavar="NAMES", help="As unlearnbench --tasks.")
@click.option("--plot", metavar="FILE", help="Draw it (.png, .svg, .pdf).")
@field_options(Options, without={"progress", "fresh", "target_model", "deployed"})
@verbose_option
def attack(
    model: str,
    target: str,
    retrained: str,
    suite: str,
    names: str | None,
    tasks: str,
    plot: str | None,
    **given: Any,
) -> None:
    """What brings it back, and how cheaply: a suite of conditions over all three checkpoints.

    Each condition is evaluated as `unlearnbench --conditions` does it, into ordinary run folders;
    the same command goes on where it was interrupted.
    """
    from unlearnbench.evaluation.evaluate import evaluate
    from unlearnbench.recovery.compare import compare, open_comparison
    from unlearnbench.runs.folder import run_path

    specs = conditions.resolve(split_names(names or SUITES[suite]))
    chosen = [spec.name for spec in specs if spec.name != FULL]
    if not chosen:
        raise OptionError("--conditions: name one beside none")
    options = taken(Options, given).updated({"progress": True})
    if any(spec.needs_target for spec in specs):
        options = options.updated({"target_model": target})
    failed: list[EvaluationError] = []

    def run(path: str) -> list[RunResult]:
        try:
            return evaluate(path, tasks, [FULL, *chosen], options)
        except EvaluationError as error:
            failed.append(error)
            return list(error.results)

    made = [run(path) for path in (model, target, retrained)]
    common = set.intersection(*({r.condition.name for r in each} for each in made))
    if FULL not in common or len(common) < 2:
        raise failed[0]
    ours, theirs, control = (
        [run_path(options.output, r.checkpoint, r.condition.name) for r in each] for each in made
    )
    kept = [path for path in ours if path.name in common and path.name in (FULL, *chosen)]
    registry = load_registry(options.include_path)
    known = registry.resolve([name for name in split_names(tasks) if registry.knows(name)])
    only = [task.task for task in known]
    comparison = open_comparison(kept, theirs[0].parent, control[0].parent, only=only)
    found = attacks(comparison, compare(comparison))
    click.echo(printable(attack_table(found)))
    click.echo(_CAPTION)
    if plot is not None:
        plot_attacks(Path(plot), found)
    if failed:
        raise failed[0]
