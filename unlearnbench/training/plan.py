"""Which row each shard and slice of an ensemble has."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from unlearnbench.checkpoints.find import read_json
from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.results import Checkpoint, Sha256
from unlearnbench.training.options import TrainOptions
from unlearnbench.util.validation import as_model

PLAN = "shards.json"
_SEEDS = 1009  # between two shards' seeds, so that no two stages have one

_Slice = Annotated[tuple[Sha256, ...], Field(strict=False)]
_Shard = Annotated[tuple[_Slice, ...], Field(strict=False, min_length=1, max_length=64)]


class ShardPlan(BaseModel):
    """Which rows each slice of each shard has, in the order in which they came."""

    model_config = Checkpoint.model_config

    format_version: Literal[1] = 1
    base: Sha256
    """What all shards began with: its weights' hash."""
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field(strict=False)
    """Of each shard's training; a stage's is so much more as its number, from 0."""
    shards: tuple[_Shard, ...] = Field(strict=False, min_length=1, max_length=63)
    """Rows by hash: of the token ids and labels that they become."""

    @property
    def rows(self) -> set[str]:
        """Every row's hash."""
        return {row for shard in self.shards for part in shard for row in part}

    def without(self, gone: set[str]) -> ShardPlan:
        """The same for the rows that stay; slices may become empty, but none moves."""
        left = tuple(
            tuple(tuple(row for row in part if row not in gone) for part in shard)
            for shard in self.shards
        )
        return self.model_copy(update={"shards": left})

    def first_touched(self, number: int, gone: set[str]) -> int | None:
        """The first slice of a shard that has one of the rows; None where none has."""
        touched = [at for at, part in enumerate(self.shards[number]) if gone & set(part)]
        return min(touched, default=None)


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


def read_plan(folder: str) -> ShardPlan:
    """Of an ensemble of shards. Raises OptionError where it is none, CheckpointError where its
    plan is damaged.
    """
    path = Path(folder).expanduser() / PLAN
    if not path.is_file():
        raise OptionError(f"{one_line(folder, 120)} is no ensemble of `finetune --shards`")
    plan = as_model(path, read_json(path), ShardPlan, CheckpointError)
    if len({len(shard) for shard in plan.shards}) > 1 or len(plan.seeds) != len(plan.shards):
        raise CheckpointError(f"{path}: its shards have not all as many slices, or not all a seed")
    return plan
