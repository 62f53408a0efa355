"""What an evaluation says at its end: the tables of results, and what failed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from unlearnbench.errors import Failure
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.run import run_path
from unlearnbench.lm_eval.tables import harness_table
from unlearnbench.results import RunResult, TaskResult
from unlearnbench.tasks.registry import load_registry, split_names
from unlearnbench.util.text import text_table

_ARROWS = {"low": "(low)", "high": "(high)", "zero": "(near 0)"}


def evaluation_summary(
    results: Sequence[RunResult], tasks: str, options: Options, failures: Sequence[Failure] = ()
) -> str:
    """The tables of the tasks that were asked for, and a line for each failure."""
    registry, words = load_registry(options.include_path), split_names(tasks)
    known = [word for word in words if registry.knows(word)]
    wants = {spec.task: spec.want for spec in registry.resolve(known)} if known else {}
    paths = {
        result.condition.name: run_path(options.output, result.checkpoint, result.condition.name)
        for result in results
    }
    paths |= {f.condition: f.folder for f in failures if f.condition and f.folder}
    lines = []
    if wants:
        failed = {(f.condition, f.task) for f in failures if f.condition}
        lines.append(results_table(results, paths, wants, failed))
    if known != words and any(result.harness for result in results):
        lines.append(harness_table({str(paths[r.condition.name]): r for r in results}))
    return "\n".join([*lines, *(f"failed: {f.where}: {f.message}" for f in failures)])


def results_table(
    results: Sequence[RunResult],
    paths: Mapping[str, Path],
    wants: Mapping[str, str] | None = None,
    failed: Collection[tuple[str, str | None]] = (),
) -> str:
    """A row for each condition, a column for each task, and the run folders.

    paths: run folder by condition name. wants: the columns, each with its direction; all that the
    runs hold where None. failed: condition and task; None for a task stands for all of them.
    """
    if wants is None:
        wants = {name: task.want for result in results for name, task in result.tasks.items()}
    found = {result.condition.name: result.tasks for result in results}
    head = ["condition", *(f"{name} {_ARROWS[want]}" for name, want in wants.items()), "run folder"]
    rows = [
        [
            condition,
            *(_cell(found.get(condition, {}), name, (condition, name), failed) for name in wants),
            str(path),
        ]
        for condition, path in paths.items()
    ]
    return text_table(rows, head)


def _cell(
    tasks: Mapping[str, TaskResult],
    name: str,
    place: tuple[str, str],
    failed: Collection[tuple[str, str | None]],
) -> str:
    if name not in tasks:
        return "FAILED" if place in failed or (place[0], None) in failed else "not run"
    result, parts = tasks[name], []
    if result.value is not None:
        parts.append(_plus_minus(result.value, result.stderr, 1))
    if result.auc is not None:
        shown = f"AUC {result.auc:.3f}"
        if result.auc_ci is not None:
            shown += f" [{result.auc_ci[0]:.3f}, {result.auc_ci[1]:.3f}]"
        parts.append(shown)
    return ", ".join(parts)


def _plus_minus(value: float, stderr: float | None, digits: int) -> str:
    shown = f"{value:.{digits}f}"
    return shown if stderr is None else f"{shown} +- {stderr:.{digits}f}"
