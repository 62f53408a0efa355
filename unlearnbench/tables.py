"""Results as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tabulate import tabulate

from unlearnbench.results import RunResult, TaskResult

__all__ = ["results_table"]

_ARROWS = {"low": "(low)", "high": "(high)", "zero": "(near 0)"}


def results_table(
    results: Sequence[RunResult], paths: Mapping[str, Path], tasks: Sequence[str] | None = None
) -> str:
    """A row for each precision, a column for each task, and the run folders.

    paths: run folder by precision name. tasks: the columns; all that the runs hold where None.
    """
    if tasks is None:
        tasks = list(dict.fromkeys(name for result in results for name in result.tasks))
    wants = {name: r.tasks[name].want for r in results for name in r.tasks}
    head = ["precision", *(f"{name} {_ARROWS[wants[name]]}" for name in tasks), "run folder"]
    rows = [
        [
            result.precision.name,
            *(_cell(result.tasks.get(name)) for name in tasks),
            str(paths[result.precision.name]),
        ]
        for result in results
    ]
    return tabulate(rows, headers=head, tablefmt="github", disable_numparse=True)


def _cell(result: TaskResult | None) -> str:
    if result is None:
        return "not run"
    parts = []
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
