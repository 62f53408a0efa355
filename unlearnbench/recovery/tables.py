"""The recovery table as text."""

from __future__ import annotations

from collections.abc import Sequence

from unlearnbench.metrics.intervals import Bounds
from unlearnbench.recovery.statistics import RecoveryRow
from unlearnbench.util.text import text_table

_HEAD = ["entry", "task", "precision", "full", "quantized", "target", "retrained", "change"]
_HEAD += ["recovered", "retained", "utility", "verdict"]


def recovery_table(rows: Sequence[RecoveryRow]) -> str:
    """The recovery table: points, and shares in percent, with their 95% intervals. ``*`` marks a
    change that holds after Holm's correction.
    """
    return text_table([_cells(row) for row in rows], _HEAD)


def _cells(row: RecoveryRow) -> list[str]:
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


def with_interval(value: float, ci: Bounds | None) -> str:
    """``value [low, high]``, one decimal."""
    return f"{value:.1f}" if ci is None else f"{value:.1f} [{ci[0]:.1f}, {ci[1]:.1f}]"


def share(value: float | None, ci: Bounds | None) -> str:
    """A share in percent with its interval; ``-`` where there is none."""
    if value is None:
        return "-"
    shown = f"{100 * value:.0f}%"
    return shown if ci is None else f"{shown} [{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"
