"""Rows are dealt out to the shards and slices of an ensemble."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from unlearnbench.checkpoints.shard_plan import ShardPlan
from unlearnbench.errors import OptionError
from unlearnbench.training.options import TrainOptions

_SEEDS = 1009  # between two shards' seeds, so that no two stages have one


def make_plan(rows: Sequence[str], options: TrainOptions, base: str) -> ShardPlan:
    """Shards of as many rows, one more or less, each of slices of as many. ``random`` draws them by
    the seed, else they follow the data. Raises OptionError where a slice would be empty.
    """
    shards, slices = options.shards or 1, options.slices or 1
    if len(rows) < shards * slices:
        raise OptionError(
            f"{len(rows)} rows are too few for {shards} shards of {slices} slices; lower --shards "
            "or --slices"
        )
    order = list(range(len(rows)))
    if options.placement != "together":
        random.Random(options.seed).shuffle(order)  # noqa: S311 - a seeded generator is the point
    found = [
        [[rows[at] for at in sorted(part)] for part in _cut(shard, slices)]
        for shard in _cut(order, shards)
    ]
    seeds = [(options.seed + _SEEDS * number) % 2**31 for number in range(shards)]
    return ShardPlan.model_validate({"base": base, "seeds": seeds, "shards": found})


def _cut(items: Sequence[int], parts: int) -> list[Sequence[int]]:
    """All items in so many parts, whose sizes differ by one at most."""
    ends = [len(items) * number // parts for number in range(parts + 1)]
    return [items[first:last] for first, last in itertools.pairwise(ends)]
