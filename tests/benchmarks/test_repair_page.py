"""The tables of docs/repair.md, and the controls behind them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from scipy import stats

from tests.benchmarks import pages, repair_page
from tests.benchmarks.measure_repair import INT4, PLACES, SIGNS, step_at_random
from tests.benchmarks.repair_page import FORGET, FOUR_BITS, RETAIN
from unlearnbench import conditions
from unlearnbench.conditions.base import Levels
from unlearnbench.repair.method import STRENGTHS, mend
from unlearnbench.results import FULL


def grid(weight: torch.Tensor) -> Levels:
    return conditions.levels(INT4, weight)


def row(seed: int, forget: float, retain: float = 80.0, **cells: float) -> dict[str, Any]:
    """Scores that are the same everywhere but at ``cells``."""
    names = (FULL, *FOUR_BITS)
    scores = {name: {FORGET: forget, RETAIN: retain} for name in names}
    for name, value in cells.items():
        scores[name.replace("_", "-")][FORGET] = value
    return {"seed": seed, "name": "ga_gdr", "variant": "-", "moved": None, "scores": scores}


def test_the_page_shows_what_is_stored() -> None:
    page = repair_page.PAGE.read_text(encoding="utf-8")
    found = json.loads(repair_page.STORED.read_bytes())
    assert pages.with_tables(page, repair_page.tables(found)) == page


def test_an_interval_is_students_over_the_seeds() -> None:
    values = {0: [10.0, 20.0], 1: [18.0], 2: [24.0], 3: [17.0]}  # means 15, 18, 24, 17
    rows = [row(seed, value) for seed, found in values.items() for value in found]
    means = [15.0, 18.0, 24.0, 17.0]
    low, high = stats.t.interval(0.95, 3, loc=18.5, scale=stats.sem(means))
    assert repair_page.interval(rows, FULL, FORGET) == f"18 [{low:.0f}, {high:.0f}]"
    assert repair_page.interval(rows[:2], FULL, FORGET) == "15"


def test_margins_are_of_the_worst_cell_and_of_full_precision() -> None:
    before, after = row(0, 20.0, 90.0), row(0, 18.0, 80.0, rtn_int4=30.0)
    after["scores"][FULL][RETAIN] = 82.0
    assert repair_page.margins(before, after) == pytest.approx((2.0, 3.5, 1.0))


@pytest.mark.parametrize("variant", [SIGNS, PLACES])
def test_steps_at_random_are_those_of_the_default(variant: str) -> None:
    draw = torch.Generator().manual_seed(1)
    known = torch.randn(64, 96, generator=draw)
    exact = known + 0.03 * torch.randn(64, 96, generator=draw)
    target = grid(known)
    mended = mend(exact, known, grid, "concentrated", STRENGTHS["concentrated"]).weight
    made, stepped = step_at_random(variant, exact, known, draw)
    after = grid(made)
    assert 0.005 < float(stepped.float().mean()) < 0.5
    assert torch.equal(stepped.sum(1), (mended != known).sum(1))
    assert torch.equal(stepped, made != known)
    assert torch.equal(made.abs().amax(1), known.abs().amax(1))  # the grid stays
    assert torch.equal(stepped, after.values != target.values)  # a whole step each
    same = (stepped == (mended != known)).float().mean()
    if variant == SIGNS:
        assert same == 1
        assert 0.4 < float((made > known)[stepped].float().mean()) < 0.6
    else:
        assert 0.5 < float(same) < 0.99
        assert bool(((made - known)[stepped] * (exact - known)[stepped] > 0).all())
