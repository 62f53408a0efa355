"""One weight matrix mended: the same update, carried by few weights in whole steps of a grid.

An update d = U - T that is spread thin over many weights inside their bins is lost by rounding:
<Q(U) - Q(T), d>, its projection, is little of |d|^2. Its effect on a loss is, to first order, that
projection. So the projection is kept and its carrier changed, row by row, the most projection for
the least change first. See docs/repair.md.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch

    from unlearnbench.conditions.base import Levels

Strategy: TypeAlias = Literal["grid", "concentrated", "floor"]
STRENGTHS: dict[Strategy, float] = {"concentrated": 1.5, "grid": 1.0, "floor": 1.0}
"""What each does by default; why is in docs/repair.md."""
Grid: TypeAlias = "Callable[[torch.Tensor], Levels]"
"""A weight, (out, in) -> its levels at one precision."""

# Weights that are worked on at once, in rows; 64 rows are whole blocks of any quantizer.
_AT_ONCE, _ROWS = 2**21, 64
# Of a level: what rounding to bf16 moves it by, 2^-9 either way, and a little.
_ON_LEVEL = 2**-8
# Behind the edge of a bin, as a share of the way from there to its level, so that what storing
# rounds does not take a weight back.
_BEYOND = 0.25
# A row's moves are chosen in so many parts; how much of Q(T) - T counts; and how many times the
# row's mean d^2 a move counts beside its gain: its noise forgets too (docs/repair.md).
_ROUNDS, _ROUNDED, _NOISE = 8, 0.75, 4.8


class Mended(NamedTuple):
    """A matrix or some of its rows, mended."""

    weight: torch.Tensor
    """(out, in), float32."""
    moved: int
    """Weights that took a whole step which rounding does not take by itself."""
    left: int
    """Rows that stay as they are, because rounding takes nothing of their update."""
    owed: float
    """What is still lacking of the projection; below 0, what is too much."""


def mend(
    unlearned: torch.Tensor,
    target: torch.Tensor,
    grid: Grid,
    strategy: Strategy,
    strength: float,
) -> Mended:
    """Mend one matrix, (out, in), for one grid.

    ``grid``: from Q(U), codes are moved by one step in the direction of d, those of the least
    extra squared error for their gain of projection first, until <W - Q(T), d> is ``strength``
    times |d|^2. ``concentrated``: from T, weights are moved to their own place in the next bin, so
    that rounding takes nothing from the step and adds nothing, until <W - T, d> and, for the noise,
    ``_NOISE`` times |d|^2 times the share of the row that moved are; those first that add least to
    |e|^2 and to e's products with all rows of d, e the row's change and part of Q(T) - T. What a
    row has too little or too much is the next row's. A row is left as it is where all that it moved
    lies on levels, or a step from T, already: rounding takes nothing away.
    ``floor``: see ``_floor``.

    Deterministic, whatever the number of threads; of equals the column that comes first moves.
    """
    import torch

    size = max(1, _AT_ONCE // (unlearned.shape[1] * _ROWS)) * _ROWS
    work = {"grid": _grid, "floor": _floor}.get(strategy)
    if work is None:
        work = partial(_concentrated, _gram(unlearned.float() - target.float()))
    parts, owed = [], 0.0
    for ours, theirs in zip(unlearned.split(size), target.split(size), strict=True):
        parts.append(work(ours.float(), theirs.float(), grid, strength, owed))
        owed = parts[-1].owed
    weight = torch.cat([part.weight for part in parts])
    return Mended(weight, sum(p.moved for p in parts), sum(p.left for p in parts), owed)


def _grid(
    ours: torch.Tensor, theirs: torch.Tensor, grid: Grid, strength: float, owed: float
) -> Mended:
    here, there = grid(ours), grid(theirs)
    d = ours.double() - theirs.double()
    begin, own = here.values.double(), ours.double()
    toward = here.above.where(d > 0, here.below).double()
    cost = (toward - own) ** 2 - (begin - own) ** 2
    need = strength * _sums(d * d) - _sums((begin - there.values) * d)
    whole = here.values.where(here.above.isfinite() | here.below.isfinite(), ours)
    gain, kept = _moves(ours, here, d, begin, toward)
    chosen, owed = _choose(cost, gain, need, kept, owed)
    return _finish(ours, whole, toward, chosen, kept, owed)


def _concentrated(
    gram: torch.Tensor,
    ours: torch.Tensor,
    theirs: torch.Tensor,
    grid: Grid,
    strength: float,
    owed: float,
) -> Mended:
    import torch

    d, begin, there = ours.double() - theirs.double(), theirs.double(), grid(theirs)
    toward = own_place(theirs, there, grid, d.sign())
    need = strength * _sums(d * d)
    gain, kept = _moves(ours, grid(ours), d, begin, toward)
    gain = (gain + _NOISE * _sums(d * d)[:, None] / d.shape[1]).where(gain > 0, 0.0)
    step, taken = (toward - begin).where(gain > 0, 0.0), gain < 0
    pull, left = _product(_ROUNDED * (there.values - theirs), gram), owed
    for share in range(1, _ROUNDS + 1):
        cost = step * (2 * pull + step * gram.diagonal())
        lacks = need * share / _ROUNDS - _sums(gain * taken)
        chosen, left = _choose(cost, gain.where(~taken, 0.0), lacks, kept, owed)
        taken |= chosen
        pull += torch.sparse.mm((step * chosen).float().to_sparse(), gram)
    return _finish(ours, theirs, toward, taken, kept, left)


def _gram(d: torch.Tensor) -> torch.Tensor:
    """d^T d, its diagonal 1 in the mean, plus 1 on it."""
    gram = _product(d.T, d)
    trace = float(gram.diagonal().cumsum(0)[-1])
    gram *= len(gram) / trace if trace else 0.0
    gram.diagonal().add_(1)
    return gram


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two matrices, by one thread: more may add in another order."""
    import torch

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        return a @ b
    finally:
        torch.set_num_threads(threads)


def own_place(theirs: torch.Tensor, there: Levels, grid: Grid, sign: torch.Tensor) -> torch.Tensor:
    """Where each weight goes that takes a step: as far from the next level as it lies from its own,
    but not too near the edges of the next bin; NaN for none.
    """
    level = there.above.where(sign > 0, there.below)
    after = grid(level.where(level.isfinite(), theirs))
    beyond = after.above.where(sign > 0, after.below)
    half = (1 - _BEYOND) / 2
    least = -half * (level - there.values).abs().double()
    most = half * (beyond - level).abs().double().nan_to_num(0.0)
    ahead = (theirs.double() - there.values) * sign
    return level + ahead.clamp(least, most) * sign


def _floor(
    ours: torch.Tensor, theirs: torch.Tensor, grid: Grid, strength: float, owed: float
) -> Mended:
    """After MANSU (arXiv 2605.15138): a weight changes by enough for another code on T's grid, or
    not at all. ``strength`` x d is rounded to one of 0 and what takes the weight just over the edge
    of its bin, the nearer; beyond that it stays as it is, up to the next level. A weight without a
    next level in its direction, as one that the grid hangs on, is T's.
    """
    there, d = grid(theirs), strength * (ours.double() - theirs.double())
    toward = there.above.where(d > 0, there.below).double()
    edge = (there.values.double() + toward) / 2
    least = (edge + _BEYOND * (toward - edge) - theirs).abs()
    most = (toward - theirs).abs()
    size = d.abs()
    new = least.where(size >= least / 2, 0.0).maximum(size.where(size > least, 0.0)).minimum(most)
    moves = (d != 0) & toward.isfinite() & (new > 0)
    weight = (theirs + d.sign() * new).float().where(moves, theirs)
    return Mended(weight, int(moves.sum()), 0, owed)


def _moves(
    ours: torch.Tensor, here: Levels, d: torch.Tensor, begin: torch.Tensor, toward: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What each move from ``begin`` to ``toward``, NaN for none, gains, and which rows stay."""
    fixed = here.above.isnan() & here.below.isnan()
    whole = [(end - ours).abs() <= _ON_LEVEL * ours.abs() for end in (here.values, toward)]
    kept = (whole[0] | whole[1] | fixed | (d == 0)).all(1)
    return ((toward - begin) * d).nan_to_num(0.0).clamp(min=0.0), kept


def _finish(
    ours: torch.Tensor,
    rest: torch.Tensor,
    toward: torch.Tensor,
    chosen: torch.Tensor,
    kept: torch.Tensor,
    owed: float,
) -> Mended:
    """Chosen weights moved, the others ``rest``, rows that are kept ``ours``."""
    new = ours.where(kept[:, None], toward.float().where(chosen, rest))
    return Mended(new, int(chosen.sum()), int(kept.sum()), owed)


def _sums(products: torch.Tensor) -> torch.Tensor:
    """The sum of every row, one term after another: threads cannot change it."""
    return products.cumsum(1)[:, -1]


def _choose(
    cost: torch.Tensor, gain: torch.Tensor, need: torch.Tensor, kept: torch.Tensor, owed: float
) -> tuple[torch.Tensor, float]:
    """Which weights of each row to move, and what the rows together still lack.

    Each row takes its cheapest moves up to the one that brings its sum of gains nearest to what it
    needs and the rows before it owe.
    """
    import torch

    can = gain > 0
    ratio = (cost / gain.where(can, 1.0)).where(can, float("inf"))
    order = ratio.argsort(dim=1, stable=True)
    sums = gain.gather(1, order).cumsum(1)
    counts = torch.zeros(len(gain), 1, dtype=torch.long)
    for row in (~kept).nonzero().flatten().tolist():
        owed += float(need[row])
        if owed <= 0:
            continue
        each = sums[row, : int(can[row].sum())]
        n = int(torch.searchsorted(each, owed))
        reached = float(each[n - 1]) if n else 0.0
        if n < len(each) and float(each[n]) - owed < owed - reached:
            n, reached = n + 1, float(each[n])
        counts[row], owed = n, owed - reached
    first = torch.arange(gain.shape[1]) < counts
    return torch.zeros_like(first).scatter(1, order, first), owed
