"""Matrix after matrix mended, and what rounding leaves of its update before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.overlap import product
from unlearnbench.errors import CheckpointError, NotInForceError, OptionError
from unlearnbench.repair.method import Mended, Strategy, mend
from unlearnbench.results import FULL

if TYPE_CHECKING:
    import torch

# With several grids the strength is raised until each keeps what the first one did, this often at
# most.
_TRIES, _CLOSE = 4, 0.02
# ``concentrated`` leaves a matrix where rounding, at every grid, leaves so much of its update.
_SURVIVES = 2 / 3
_AT_ONCE, _ROWS = 2**21, 64


@dataclass
class Totals:
    """Sums over the matrices of a checkpoint."""

    weights: int = 0
    moved: int = 0
    rows: int = 0
    rows_left: int = 0
    update: float = 0.0
    """Squared size of the update."""
    change: float = 0.0
    """Squared difference of the mended weights from the model's."""
    weight: float = 0.0
    """Squared size of the model's weights."""
    before: dict[str, float] = field(default_factory=dict)
    """By precision, the projection of the rounded update on the update."""
    after: dict[str, float] = field(default_factory=dict)
    solved: set[str] = field(default_factory=set)
    """Precisions whose grid follows the weights, so that codes may not be those that were meant."""


class Mender:
    """Mends matrices for ``precisions``, and keeps count for these and for ``report``."""

    def __init__(
        self,
        precisions: Sequence[ConditionSpec],
        report: Sequence[ConditionSpec],
        strategy: Strategy,
        strength: float,
    ) -> None:
        if strategy == "floor" and len(precisions) > 1:
            raise OptionError(
                "--strategy floor gives other codes at one precision; name one with --for"
            )
        self.precisions, self.strategy, self.strength = precisions, strategy, strength
        self.measured = {spec.name: spec for spec in (*precisions, *report)}
        self.totals = Totals()

    def mend(
        self, name: str, ours: torch.Tensor, theirs: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """The mended weight in ``dtype``.

        Raises:
            CheckpointError: the two differ in shape, or one is not finite.
            NotInForceError: in ``dtype`` it would be rounded to other codes than were meant.
        """
        if ours.shape != theirs.shape:
            raise CheckpointError(
                f"{name} has shape {tuple(ours.shape)} in the model and {tuple(theirs.shape)} in "
                "the target; they are not the same architecture"
            )
        if not bool(ours.isfinite().all() and theirs.isfinite().all()):
            raise CheckpointError(f"{name} has NaN or infinite values; it is broken")
        found = self._for_all(ours, theirs)
        weight = found.weight.to(dtype)
        self._check(name, found.weight, weight)
        self._count(ours, theirs, found, weight.float())
        return weight

    def _for_all(self, ours: torch.Tensor, theirs: torch.Tensor) -> Mended:
        first, *others = self.precisions
        strength, grid = self.strength, partial(conditions.levels, first)
        wanted: float | None = None
        size = product(ours, theirs, ours, theirs)
        least = min(_kept(spec, ours, theirs, ours) for spec in self.precisions)
        if self.strategy == "concentrated" and least >= _SURVIVES * size:
            return Mended(ours.float(), 0, len(ours), 0.0)
        for _ in range(_TRIES):
            found = mend(ours, theirs, grid, self.strategy, strength)
            if not others or size == 0:
                break
            if wanted is None:
                wanted = min(strength, _kept(first, ours, theirs, found.weight) / size)
            least = min(_kept(spec, ours, theirs, found.weight) for spec in others) / size
            if least >= wanted - _CLOSE:
                break
            strength += wanted - least
        return found

    def _check(self, name: str, meant: torch.Tensor, stored: torch.Tensor) -> None:
        """On the grid, each weight is one of its levels; so it must be after it was stored."""
        if self.strategy != "grid":
            return
        spec = self.precisions[0]
        for wide, told in zip(_parts(meant), _parts(stored.float()), strict=True):
            first, last = (conditions.encode(spec, part).codes for part in (wide, told))
            off = int((first != last).sum())
            if off and "hqq" in spec.name:  # solved for: the grid follows the weights
                self.totals.solved.add(spec.name)
            elif off:
                raise NotInForceError(
                    f"{spec.name}: {off} codes of {name} would not be those that were meant once "
                    "its weights are stored; use --weights-dtype fp32"
                )

    def _count(
        self, ours: torch.Tensor, theirs: torch.Tensor, found: Mended, weight: torch.Tensor
    ) -> None:
        totals = self.totals
        totals.weights += ours.numel()
        totals.moved += found.moved
        totals.rows += len(ours)
        totals.rows_left += found.left
        totals.update += product(ours, theirs, ours, theirs)
        totals.change += product(weight, ours, weight, ours)
        totals.weight += product(ours, ours * 0, ours, ours * 0)
        for sums, values in ((totals.before, ours), (totals.after, weight)):
            full = product(values, theirs, ours, theirs)
            sums[FULL] = sums.get(FULL, 0.0) + full
            for name, spec in self.measured.items():
                sums[name] = sums.get(name, 0.0) + _kept(spec, ours, theirs, values)


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    return list(weight.split(max(1, _AT_ONCE // (weight.shape[1] * _ROWS)) * _ROWS))


def _kept(
    spec: ConditionSpec, ours: torch.Tensor, theirs: torch.Tensor, weight: torch.Tensor
) -> float:
    """<Q(weight) - Q(theirs), ours - theirs>."""
    total = 0.0
    for u, t, w in zip(*map(_parts, (ours, theirs, weight)), strict=True):
        found, target = (conditions.encode(spec, part).values for part in (w, t))
        total += product(found, target, u, t)
    return total
