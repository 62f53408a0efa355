"""Matrix after matrix mended, and what rounding leaves of its update before and after."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from unlearnbench import conditions
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.conditions.quantize.overlap import product
from unlearnbench.errors import CheckpointError, NotInForceError, OptionError
from unlearnbench.repair.method import STRENGTHS, Mended, Strategy, mend
from unlearnbench.results import FULL

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.weights import Weights

# With several grids the strength is raised until each keeps what the first one did, this often at
# most.
_TRIES, _CLOSE = 3, 0.02
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
    better: int = 0
    """Matrices that stay as they are because less of their update would be left."""
    on_grid: int = 0
    """Matrices that ``concentrated`` leaves to ``grid``."""
    unfit: dict[str, str] = field(default_factory=dict)
    """Further precisions that do not fit a matrix, and why: nothing is told of them."""


class Mender:
    """Mends matrices for ``precisions``, and keeps count for these and for ``report``. ``loose``:
    what is in ``report`` alone may not fit.
    """

    def __init__(
        self,
        model: Weights,
        precisions: Sequence[ConditionSpec],
        report: Sequence[ConditionSpec],
        strategy: Strategy,
        strength: float,
        loose: bool = False,
    ) -> None:
        if strategy == "floor" and len(precisions) > 1:
            raise OptionError(
                "--strategy floor gives other codes at one precision; name one with --for"
            )
        self._model, self._strategy, self._strength = model, strategy, strength
        self._for, self._report, self._loose = precisions, report, loose
        self.totals = Totals()

    def mend(
        self,
        name: str,
        ours: torch.Tensor,
        theirs: torch.Tensor,
        stored: torch.dtype,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """The mended weight in ``dtype``; ``stored``: the model's own. A matrix that is the
        target's but for rounding to that was not unlearned.

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
        if bool((ours == theirs.to(stored)).all()):
            theirs = ours
        specs = [
            conditions.for_matrix(spec, name, self._model.linear, self._model.config)
            for spec in (*self._for, *self._report)
        ]
        own = specs[: len(self._for)]
        found = self._for_all(name, own, ours, theirs)
        weight = found.weight.to(dtype)
        self._check(name, own[0], found.weight, weight)
        self._count(
            name, {spec.name: spec for spec in specs}, (ours, theirs), found, weight.float()
        )
        return weight

    def _for_all(
        self, name: str, specs: Sequence[ConditionSpec], ours: torch.Tensor, theirs: torch.Tensor
    ) -> Mended:
        size = product(ours, theirs, ours, theirs)

        def least(weight: torch.Tensor, of: Sequence[ConditionSpec]) -> float:
            return min(_kept(name, spec, ours, theirs, weight) for spec in of) / size

        def mended(strategy: Strategy, strength: float, specs: Sequence[ConditionSpec]) -> Mended:
            first, *others = specs
            found = mend(ours, theirs, partial(conditions.levels, first), strategy, strength)
            if not others or not size:
                return found
            wanted = min(strength, least(found.weight, [first]))
            for _ in range(_TRIES):
                kept = least(found.weight, others)
                if kept >= wanted - _CLOSE:
                    break
                strength += wanted - kept
                found = mend(ours, theirs, partial(conditions.levels, first), strategy, strength)
            return found

        found = Mended(ours.float(), 0, len(ours), 0.0)
        if self._strategy != "concentrated" or not size:
            return mended(self._strategy, self._strength, specs)
        # Steps in the bins of what leaves least: those of finer ones would be lost there.
        kept = {spec.name: least(ours, [spec]) for spec in specs}
        before, specs = min(kept.values()), sorted(specs, key=lambda spec: kept[spec.name])
        if before >= _SURVIVES:
            return found
        # So many steps may be needed that, their noise counted, less is left than rounding leaves.
        ways: dict[Strategy, float] = {"concentrated": self._strength, "grid": STRENGTHS["grid"]}
        for strategy, most in ways.items():
            tried = mended(strategy, min(self._strength, most), specs)
            if least(tried.weight, specs) > before:
                self.totals.on_grid += strategy == "grid"
                return tried
        self.totals.better += 1
        return found

    def _check(
        self, name: str, spec: ConditionSpec, meant: torch.Tensor, stored: torch.Tensor
    ) -> None:
        """On the grid, each weight is one of its levels; so it must be after it was stored."""
        if self._strategy != "grid" or conditions.is_solved(spec):
            return
        for wide, told in zip(_parts(meant), _parts(stored.float()), strict=True):
            first, last = (conditions.encode(spec, part).codes for part in (wide, told))
            off = int((first != last).sum())
            if off:
                raise NotInForceError(
                    f"{spec.name}: {off} codes of {name} would not be those that were meant once "
                    "its weights are stored; use --weights-dtype fp32"
                )

    def _count(
        self,
        name: str,
        specs: Mapping[str, ConditionSpec],
        pair: tuple[torch.Tensor, torch.Tensor],
        found: Mended,
        weight: torch.Tensor,
    ) -> None:
        totals, (ours, theirs) = self.totals, pair
        totals.weights += ours.numel()
        totals.moved += found.moved
        totals.rows += len(ours)
        totals.rows_left += found.left
        totals.update += product(ours, theirs, ours, theirs)
        totals.change += product(weight, ours, weight, ours)
        totals.weight += product(ours, ours * 0, ours, ours * 0)
        sums = {FULL: [product(values, theirs, ours, theirs) for values in (ours, weight)]}
        own = {spec.name for spec in self._for}
        for label, spec in specs.items():
            if label in totals.unfit:
                continue
            try:
                sums[label] = [_kept(name, spec, ours, theirs, values) for values in (ours, weight)]
            except NotInForceError as error:
                if label in own or not self._loose:
                    raise
                totals.unfit[label] = str(error)
                for told in (totals.before, totals.after):
                    told.pop(label, None)
        for label, (before, after) in sums.items():
            totals.before[label] = totals.before.get(label, 0.0) + before
            totals.after[label] = totals.after.get(label, 0.0) + after


def _parts(weight: torch.Tensor) -> list[torch.Tensor]:
    return list(weight.split(max(1, _AT_ONCE // (weight.shape[1] * _ROWS)) * _ROWS))


def _kept(
    name: str, spec: ConditionSpec, ours: torch.Tensor, theirs: torch.Tensor, weight: torch.Tensor
) -> float:
    """<Q(weight) - Q(theirs), ours - theirs>."""
    total = 0.0
    for u, t, w in zip(*map(_parts, (ours, theirs, weight)), strict=True):
        found, target = (conditions.encode(spec, part).values for part in (w, t))
        total += product(found, target, u, t)
    if not math.isfinite(total):
        raise CheckpointError(f"{name} has values that {spec.name} cannot hold; leave it out")
    return total
