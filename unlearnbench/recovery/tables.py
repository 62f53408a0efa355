"""Results as text tables."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from unlearnbench.recovery.statistics import RecoveryRow
from unlearnbench.results import RunResult, TaskResult
from unlearnbench.util.text import text_table

_ARROWS = {"low": "(low)", "high": "(high)", "zero": "(near 0)"}


def results_table(
    results: Sequence[RunResult],
    paths: Mapping[str, Path],
    wants: Mapping[str, str] | None = None,
    failed: Collection[tuple[str, str | None]] = (),
) -> str:
    """A row for each precision, a column for each task, and the run folders.

    paths: run folder by precision name. wants: the columns, each with its direction; all that the
    runs hold where None. failed: precision and task; None for a task stands for all of them.
    """
    if wants is None:
        wants = {name: task.want for result in results for name, task in result.tasks.items()}
    found = {result.condition.name: result.tasks for result in results}
    head = ["precision", *(f"{name} {_ARROWS[want]}" for name, want in wants.items()), "run folder"]
    rows = [
        [
            precision,
            *(_cell(found.get(precision, {}), name, (precision, name), failed) for name in wants),
            str(path),
        ]
        for precision, path in paths.items()
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


_RECOVERY_HEAD = [
    "entry",
    "task",
    "precision",
    "full",
    "quantized",
    "target",
    "retrained",
    "change",
    "recovered",
    "retained",
    "utility",
    "verdict",
]


def recovery_table(rows: Sequence[RecoveryRow]) -> str:
    """The recovery table: points, and shares in percent, with their 95% intervals. ``*`` marks a
    change that holds after Holm's correction.
    """
    return text_table([_recovery_cells(row) for row in rows], _RECOVERY_HEAD)


def _recovery_cells(row: RecoveryRow) -> list[str]:
    verdict: str = row.verdict
    if row.verdict == "not decided":
        needed = row.samples_needed
        more = "no number of samples settles it" if needed is None else f"about {needed} samples"
        verdict = f"not decided ({more})"
    return [
        row.entry,
        row.task,
        row.precision,
        with_interval(row.full, row.full_ci),
        with_interval(row.quantized, row.quantized_ci),
        with_interval(row.target, row.target_ci),
        with_interval(row.retrained, row.retrained_ci),
        with_interval(row.change, row.change_ci) + (" *" if row.significant else ""),
        share(row.recovered, row.recovered_ci),
        share(row.retained, row.retained_ci),
        share(row.utility, row.utility_ci),
        verdict,
    ]


def with_interval(value: float, ci: tuple[float, float] | None) -> str:
    """``value [low, high]``, one decimal."""
    return f"{value:.1f}" if ci is None else f"{value:.1f} [{ci[0]:.1f}, {ci[1]:.1f}]"


def share(value: float | None, ci: tuple[float, float] | None) -> str:
    """A share in percent with its interval; ``-`` where there is none."""
    if value is None:
        return "-"
    shown = f"{100 * value:.0f}%"
    return shown if ci is None else f"{shown} [{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"
