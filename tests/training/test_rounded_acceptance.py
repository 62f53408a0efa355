"""``--survive rtn-int4 --survive-forget worst`` on the demo's models, three seeds: what GA_GDR
gives back at 4 bits stays forgotten, at the same utility.

``UNLEARNBENCH_DEMOS=DIR`` takes finished demos, ``DIR/seed0`` to ``seed2``; else they are made.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.measure_methods import (
    CONDITIONS,
    FORGET_TASK,
    GOAL,
    RETAIN_TASK,
    Home,
    Row,
    measure,
    rows,
)
from tests.demo.finished import finished_demo
from unlearnbench.demo.recipe import DemoOptions

FOUR_BITS = CONDITIONS[1:]


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_ga_gdr_gives_back_stays_forgotten_at_the_same_utility(
    seed: int, tmp_path: Path
) -> None:
    demo = finished_demo(seed, ("ga_gdr",), tmp_path)
    home = Home(DemoOptions(tmp_path / "made", seed), demo)
    (survives,) = (row for row in rows() if row.name == "ga_gdr_survive_worst")
    scores = {row.name: measure(row, home)["scores"] for row in (Row("ga_gdr"), survives)}
    most = GOAL * measure(Row("target"), home)["scores"]["none"][FORGET_TASK]
    print(scores)
    usual, ours = scores["ga_gdr"], scores[survives.name]
    assert all(usual[name][FORGET_TASK] > 2 * most for name in FOUR_BITS)
    assert all(ours[name][FORGET_TASK] <= most for name in CONDITIONS)  # rtn-int4 by its rule
    assert ours["none"][RETAIN_TASK] >= usual["none"][RETAIN_TASK] - 5
