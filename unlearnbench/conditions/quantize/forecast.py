"""What an update survival lets expect: the range of what came back where docs/why.md measured it.
The curve is made by tests/benchmarks/why_page.py from the figures stored there.
"""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

CURVE = Path(__file__).parent / "data" / "survival.json"
_FEW = 5  # pairs, below which there is no range


class Expected(NamedTuple):
    """Shares of what was forgotten that came back in measured pairs of checkpoint and precision."""

    low: float
    """A tenth of the pairs is below."""
    high: float
    """A tenth is above."""
    pairs: int


@functools.cache
def _curve() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(CURVE.read_bytes())
    return rows


def expected(survival: float) -> Expected | None:
    """The range at this survival; None where too few pairs were measured."""
    row = max(
        (row for row in _curve() if (low := row["from"]) is None or survival >= low),
        key=lambda row: -math.inf if row["from"] is None else row["from"],
    )
    if row["pairs"] < _FEW:
        return None
    return Expected(row["low"], row["high"], int(row["pairs"]))


def forecast(survival: float | None, precision: str) -> str:
    """One line on what comes back; a run replaces it."""
    if survival is None:
        return (
            "the two checkpoints hold the same weights: nothing was unlearned in these layers, and "
            "there is no update whose survival could be told"
        )
    found = expected(survival)
    if found is None:
        return f"survival {survival:.2f} at {precision}: too little was measured there to tell"
    low, high = (round(100 * share) for share in (found.low, found.high))
    return (
        f"survival {survival:.2f} at {precision}: expect {low} to {high}% back, as in 8 of 10 of "
        f"{found.pairs} measured pairs"
    )
