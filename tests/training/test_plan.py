"""Which row is in which shard and slice."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from unlearnbench.checkpoints.shard_plan import ShardPlan
from unlearnbench.errors import OptionError
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.plan import make_plan

ROWS = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(23)]


def plan_of(rows: int, shards: int, slices: int, **more: Any) -> ShardPlan:
    options = TrainOptions(shards=shards, slices=slices, **more)
    return make_plan(ROWS[:rows], options, ROWS[0])


@pytest.mark.parametrize("placement", ["random", "together"])
@pytest.mark.parametrize(
    ("rows", "shards", "slices"), [(23, 3, 4), (11, 2, 3), (6, 3, 2), (5, 1, 5)]
)
def test_every_row_has_a_slice_of_one_shard_and_its_deletion_touches_it(
    rows: int, shards: int, slices: int, placement: str
) -> None:
    """The released code's last rows, those beyond equal slices, among them."""
    plan = plan_of(rows, shards, slices, placement=placement)
    assert [len(shard) for shard in plan.shards] == [slices] * shards
    every = [row for shard in plan.shards for part in shard for row in part]
    assert sorted(every) == sorted(ROWS[:rows])
    sizes = [sum(map(len, shard)) for shard in plan.shards]
    assert max(sizes) - min(sizes) <= 1
    for shard in plan.shards:
        assert max(map(len, shard)) - min(map(len, shard)) <= 1
        assert all(list(part) == sorted(part, key=ROWS.index) for part in shard), "in their order"
    for row in ROWS[:rows]:
        touched = {n: at for n in range(shards) if (at := plan.first_touched(n, {row})) is not None}
        ((number, at),) = touched.items()
        assert row in plan.shards[number][at]
        after = plan.without({row})
        assert after.rows == plan.rows - {row}
        assert after.shards[:number] == plan.shards[:number], "no other row moves"
    assert len({seed + at for seed in plan.seeds for at in range(slices)}) == shards * slices
    assert read_again(plan) == plan


def read_again(plan: ShardPlan) -> ShardPlan:
    return ShardPlan.model_validate(json.loads(plan.model_dump_json()))


def test_the_seed_draws_the_rows_or_they_lie_as_given() -> None:
    assert plan_of(23, 3, 2) == plan_of(23, 3, 2)
    assert plan_of(23, 3, 2) != plan_of(23, 3, 2, seed=1)
    together = plan_of(23, 3, 2, placement="together")
    assert [row for shard in together.shards for part in shard for row in part] == ROWS
    (only,) = plan_of(23, 1, 1).shards
    assert only == (tuple(ROWS),), "one shard of one slice is the data"
    with pytest.raises(OptionError, match="5 rows are too few for 3 shards of 2 slices"):
        plan_of(5, 3, 2)
