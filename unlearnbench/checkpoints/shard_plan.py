"""Which row each shard and slice of an ensemble has, and which weights came of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from unlearnbench.checkpoints.find import files_sha256, find_checkpoint, read_json
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.results import Checkpoint, Sha256
from unlearnbench.util.files import content_sha256
from unlearnbench.util.validation import as_model

PLAN = "shards.json"

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


def shard_name(number: int) -> str:
    """The folder of a shard's model."""
    return f"shard-{number}"


def state_sha256(folder: Path) -> str:
    """Of a model's own weight files, an adapter's without its base. Raises CheckpointError where
    they cannot be read.
    """
    return files_sha256(find_checkpoint(str(folder), LoadOptions()).weights)


def require_states(folder: Path, states: Mapping[str, str], names: Iterable[str]) -> None:
    """Hold the weights of models and states against what was stated of them when they were made.

    Raises:
        CheckpointError: one is another than the training left; what came of it would be too.
    """
    for name in names:
        if states.get(name) != state_sha256(folder / name):
            raise CheckpointError(
                f"{one_line(folder, 120)}: the weights of {name} are not those that its training "
                "left (ensemble.json); restore the folder, or train the ensemble again"
            )


def require_planned(folder: Path, models: Sequence[str], states: Mapping[str, str]) -> str:
    """Hold an ensemble of shards against its plan; the hash of the plan.

    Raises:
        CheckpointError: a shard is left out, another model is named, or weights are not the
            training's.
    """
    try:
        plan = read_plan(str(folder))
    except OptionError:
        said = f"{one_line(folder, 120)} has no {PLAN}, the plan of its shards; restore the file"
        raise CheckpointError(said) from None
    names = [shard_name(number) for number in range(len(plan.shards))]
    if list(models) != names:
        raise CheckpointError(
            f"{one_line(folder, 120)}: ensemble.json and {PLAN} do not have the same shards "
            f"({one_line(', '.join(models), 80)}, and {len(names)}); restore the files"
        )
    require_states(folder, states, names)
    return content_sha256(plan.model_dump(mode="json"))
