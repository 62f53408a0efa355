"""The recovery table as text, and its rows as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from unlearnbench.metrics.intervals import Estimate
from unlearnbench.recovery.statistics import RecoveryRow
from unlearnbench.util.text import text_table

_HEAD = ["entry", "task", "precision", "full", "quantized", "target", "retrained", "change"]
_HEAD += ["recovered", "retained", "utility", "verdict"]


def recovery_table(rows: Sequence[RecoveryRow]) -> str:
    """The recovery table: points, and shares in percent, with their 95% intervals. ``*`` marks a
    change that holds after Holm's correction.
    """
    return text_table([_cells(row) for row in rows], _HEAD)


def rows_json(rows: Sequence[RecoveryRow]) -> str:
    """The rows as a JSON file's content; what was not measured is absent."""
    content = [row.model_dump(mode="json", exclude_none=True) for row in rows]
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _cells(row: RecoveryRow) -> list[str]:
    verdict: str = row.verdict
    if row.verdict == "not decided":
        needed = row.samples_needed
        more = "no number of samples settles it" if needed is None else f"about {needed} samples"
        verdict = f"not decided ({more})"
    change = points(row.estimate("change")) + (" *" if row.significant else "")
    names = ("full", "quantized", "target", "retrained")
    return [
        *(row.entry, row.task, row.precision),
        *(points(row.estimate(name)) for name in names),
        change,
        *(share(row.estimate(name)) for name in ("recovered", "retained", "utility")),
        verdict,
    ]


def points(figure: Estimate | None) -> str:
    """``value [low, high]``, one decimal; ``-`` where there is none."""
    if figure is None:
        return "-"
    shown = f"{figure.value:.1f}"
    return shown if figure.ci is None else f"{shown} [{figure.ci[0]:.1f}, {figure.ci[1]:.1f}]"


def share(figure: Estimate | None) -> str:
    """A share in percent with its interval; ``-`` where there is none."""
    if figure is None:
        return "-"
    shown = f"{100 * figure.value:.0f}%"
    ci = figure.ci
    return shown if ci is None else f"{shown} [{100 * ci[0]:.0f}, {100 * ci[1]:.0f}]"
