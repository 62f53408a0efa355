"""What was mended, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.forecast import expected, forecast
from unlearnbench.errors import one_line
from unlearnbench.repair.job import RepairJob
from unlearnbench.repair.matrices import Totals
from unlearnbench.util.text import fitted_table


def figures(totals: Totals) -> dict[str, float]:
    """What is said of the checkpoint as a whole."""
    weights, update = max(totals.weights, 1), totals.update
    return {
        "weights": totals.weights,
        "moved": totals.moved,
        "moved_share": totals.moved / weights,
        "rows": totals.rows,
        "rows_left": totals.rows_left,
        "relative_change": (totals.change / totals.weight) ** 0.5 if totals.weight else 0.0,
        "relative_update": (update / totals.weight) ** 0.5 if totals.weight else 0.0,
    }


def survival(totals: Totals) -> dict[str, tuple[float, float]] | None:
    """By precision, before and after: the share of the update that rounding leaves, projected on
    the update. None where there is no update.
    """
    if not totals.update:
        return None
    size = totals.update
    return {n: (one / size, totals.after[n] / size) for n, one in totals.before.items()}


def report_table(totals: Totals, precisions: Sequence[ConditionSpec] = ()) -> str:
    """Survival before and after by precision, a line each on size and share, and what to expect.
    precisions: that it was mended for.
    """
    found = survival(totals)
    if found is None:
        return "the model's weights are the target's: nothing was unlearned, and nothing changed"
    rows = [[name, f"{one:.3f}", f"{two:.3f}"] for name, (one, two) in found.items()]
    table = fitted_table(rows, ["update survival at", "before", "after"])
    facts = figures(totals)
    lines = [
        f"{totals.moved:,} of {totals.weights:,} weights ({100 * facts['moved_share']:.3g}%) took "
        f"a whole step; {totals.rows_left:,} of {totals.rows:,} rows stay as they are",
        f"the weights changed by {facts['relative_change']:.4g} of their size; unlearning had "
        f"changed them by {facts['relative_update']:.4g}",
    ]
    if totals.on_grid:
        lines.append(
            f"{totals.on_grid:,} matrices, of many steps, are mended as by --strategy grid"
        )
    if totals.better:
        lines.append(
            f"{totals.better:,} matrices stay as they are: less of their update would be left; "
            "--strategy grid may keep more"
        )
    lines += [
        f"{spec.name}: its grid follows the weights, so some codes may not be those that were meant"
        for spec in precisions
        if conditions.is_solved(spec)
    ]
    lines += [f"nothing is told of {one_line(why, 200)}" for why in totals.unfit.values()]
    if any(round(after, 3) > 1 for _, after in found.values()):
        lines.append("of a survival above 1 is told what 1 lets expect")
    forecasts = [forecast(min(after, 1.0), name) for name, (_, after) in found.items()]
    return "\n".join([table, "", *lines, "", *forecasts])


def report_json(job: RepairJob, totals: Totals) -> str:
    """The table's figures and what was asked for."""
    found = survival(totals) or {}
    content = {
        "model": job.model,
        "target": job.target,
        "for": [spec.name for spec in job.precisions],
        "strategy": job.strategy,
        "strength": job.strength,
        **figures(totals),
        "matrices_left": totals.better,
        "matrices_on_grid": totals.on_grid,
        "grid_follows": [spec.name for spec in job.precisions if conditions.is_solved(spec)],
        "survival": {n: {"before": one, "after": two} for n, (one, two) in found.items()},
        "expected_back": {n: _expected(two) for n, (_, two) in found.items()},
    }
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _expected(survival: float) -> list[float] | None:
    """Tenth and ninetieth hundredth of the shares that came back at such a survival."""
    found = expected(min(survival, 1.0))
    return found and [found.low, found.high]
