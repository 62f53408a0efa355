"""The method against brute force on small matrices, and its limiting cases."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unlearnbench import conditions
from unlearnbench.checkpoints.weights import Weights
from unlearnbench.conditions.base import ConditionSpec
from unlearnbench.repair.matrices import Mender, Totals
from unlearnbench.repair.method import Grid, Strategy, mend

SCHEMES = "rtn-int4", "rtn-int4-g64", "rtn-int4-asym", "rtn-int8", "bnb-nf4", "bnb-fp4", "gguf-q4_0"
STRATEGIES: tuple[Strategy, ...] = ("grid", "concentrated")


def grid_of(name: str) -> Grid:
    return partial(conditions.levels, conditions.find_condition(name))


def pair(
    rows: int, columns: int, seed: int, size: float = 0.004
) -> tuple[torch.Tensor, torch.Tensor]:
    """An unlearned matrix with heavy tails, of which small weights have moved a little, within the
    wide bins about zero, and its target; in bf16.
    """
    draw = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, columns, generator=draw) * 0.01
    target[torch.rand(rows, columns, generator=draw) < 0.05] *= 15
    update = torch.randn(rows, columns, generator=draw) * size
    return (target + update * (target.abs() < 0.02)).bfloat16().float(), target.bfloat16().float()


Doubles = NDArray[np.float64]


def moves_by_hand(unlearned: Doubles, target: Doubles, strategy: Strategy) -> tuple[Doubles, ...]:
    """For one row and int4: where its moves begin and end, and what each gains, in doubles."""

    def rounded(row: Doubles) -> Doubles:
        step = np.float32(np.abs(row).max()) / np.float32(7)
        codes: Doubles = np.round(row.astype(np.float32) / step).astype(np.float64)
        return codes * float(step)

    d = unlearned - target
    base = unlearned if strategy == "grid" else target
    start = rounded(unlearned) if strategy == "grid" else target
    step, top = np.abs(base).max() / 7, np.abs(base).max()
    toward = rounded(base) + np.sign(d) * step
    outside = np.abs(toward) > top * 1.001
    if strategy == "concentrated":  # to where it lies in its own bin, not too near the edge
        last = np.abs(toward) > 6.5 * step  # no level is beyond
        ahead = (target - rounded(target)) * np.sign(d)
        toward += np.clip(ahead, -0.375 * step, np.where(last, 0, 0.375 * step)) * np.sign(d)
    gain = (toward - start) * d
    gain[(np.abs(base) == top) | outside | (gain < 0)] = 0
    return start, toward, gain


def test_no_other_choice_gains_as_much_for_less() -> None:
    """All 4,096 choices of one row of 12; and one move more or less is not nearer."""
    moves = 0
    for seed in range(12):
        ours, theirs = pair(1, 12, seed)
        u, t = ours[0].double().numpy(), theirs[0].double().numpy()
        start, toward, gain = moves_by_hand(u, t, "grid")
        cost = (toward - u) ** 2 - (start - u) ** 2
        found = mend(ours, theirs, grid_of("rtn-int4"), "grid", 4.0)
        levels = conditions.levels(conditions.find_condition("rtn-int4"), theirs).values
        need = 4 * ((u - t) ** 2).sum() - ((start - levels[0].double().numpy()) * (u - t)).sum()
        moved = np.abs(found.weight[0].double().numpy() - start) > 1e-4
        assert moved.sum() == found.moved
        assert (gain[moved] > 0).all()
        got, paid = gain[moved].sum(), cost[moved].sum()
        others = [
            list(chosen)
            for n in range(13)
            for chosen in combinations(np.flatnonzero(gain > 0).tolist(), n)
        ]
        least = min(cost[chosen].sum() for chosen in others if gain[chosen].sum() >= got - 1e-12)
        assert paid == pytest.approx(least, abs=1e-9)
        assert found.owed == pytest.approx(need - got, abs=1e-9)
        if found.moved < (gain > 0).sum() and need > 0:
            last = gain[moved].max(initial=gain.max())
            assert abs(found.owed) <= last / 2 + 1e-9
        moves += found.moved
    assert moves > 12


def test_concentrated_moves_are_those_of_the_formula() -> None:
    """Written down anew, row by row and weight by weight: eight rounds, in each the moves that add
    least to e H e for what they count, H = d^T d n / |d|^2 + 1, e begun at 0.75 of what
    rounding does to T; a move counts 4.8 of the row's mean d^2 beside its gain.
    """
    ours, theirs = pair(6, 64, 3)
    u, t = ours.double().numpy(), theirs.double().numpy()
    d = u - t
    found = mend(ours, theirs, grid_of("rtn-int4"), "concentrated", 1.1)
    gram = d.T @ d * (64 / (d * d).sum()) + np.eye(64)
    rows = [moves_by_hand(u[r], t[r], "concentrated") for r in range(6)]
    for (_, _, gain), row in zip(rows, d, strict=True):
        gain[gain > 0] += 4.8 * (row @ row) / 64
    size = abs(t).max(1, keepdims=True) / 7
    rounded = 0.75 * (np.rint(t / size) * size - t)
    chosen: list[list[int]] = [[] for _ in rows]
    for part in range(1, 9):
        owed, more = 0.0, []
        for (start, toward, gain), own, row, begun in zip(rows, chosen, d, rounded, strict=True):
            step, change = toward - start, begun.copy()
            change[own] += step[own]
            owed += 1.1 * (row @ row) * part / 8 - gain[own].sum()
            free = [i for i in np.flatnonzero(gain > 0).tolist() if i not in own]
            price = {i: step[i] * (2 * change @ gram[i] + step[i] * gram[i, i]) for i in free}
            new: list[int] = []
            for i in sorted(free, key=lambda i: price[i] / gain[i]):
                if abs(owed - gain[i]) >= abs(owed):
                    break
                owed -= gain[i]
                new.append(i)
            more.append(new)
        for own, new in zip(chosen, more, strict=True):
            own += new
    moved = [sorted(np.flatnonzero(row).tolist()) for row in (found.weight != theirs).numpy()]
    assert moved == [sorted(own) for own in chosen]
    assert 12 < sum(map(len, moved)) == found.moved
    assert found.owed == pytest.approx(owed, abs=1e-9)


def test_the_projection_is_met_over_rows() -> None:
    ours, theirs = pair(96, 256, 1)
    d = (ours - theirs).double()
    for name in SCHEMES:
        grid, spec = grid_of(name), conditions.find_condition(name)
        there, here = (conditions.levels(spec, w).values for w in (theirs, ours))
        for strength in (0.6, 1.0):
            on = mend(ours, theirs, grid, "grid", strength)
            to = mend(ours, theirs, grid, "concentrated", strength)
            # One move of the last row at most.
            most = float(d.abs().max()) * 0.2 / float((d * d).sum())
            before = float(((here - there) * d).sum() / (d * d).sum())
            kept = float(((on.weight - there) * d).sum() / (d * d).sum())
            assert kept == pytest.approx(max(strength, before), abs=most)
            share = (to.weight != theirs).double().mean(1)
            noise = 4.8 * (share * (d * d).sum(1)).sum()
            kept = float(((to.weight - theirs) * d).sum() + noise) / float((d * d).sum())
            # Of 8 bits one step may be less than the update.
            assert kept == pytest.approx(strength, abs=most) or name == "rtn-int8"


@pytest.mark.parametrize("name", SCHEMES)
def test_what_is_on_the_grid_is_rounded_to_itself(name: str) -> None:
    """The codes meant, in fp32 and (but for 8 bits, where levels are finer than bf16) in bf16."""
    ours, theirs = pair(64, 256, 2)
    spec = conditions.find_condition(name)
    found = mend(ours, theirs, grid_of(name), "grid", 1.0)
    assert found.moved > 0
    meant = conditions.levels(spec, found.weight)
    before = conditions.encode(spec, ours).codes
    after = conditions.encode(spec, found.weight).codes
    free = meant.above.isfinite() | meant.below.isfinite()
    assert torch.equal(found.weight.where(~free, meant.values), found.weight)
    assert int((before != after).sum()) == found.moved
    if spec.bits == 4:
        rounded = conditions.encode(spec, found.weight.bfloat16().float()).codes
        assert torch.equal(rounded, after)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", SCHEMES)
def test_limiting_cases(name: str, strategy: Strategy) -> None:
    ours, theirs = pair(64, 256, 3)
    grid = grid_of(name)
    ours[5], theirs[6] = 0.0, 0.0
    ours[7] = theirs[7] = 0.0
    ours[8] = theirs[8]
    found = mend(ours, theirs, grid, strategy, 1.0)
    assert found.weight.isfinite().all()
    assert torch.equal(found.weight[7:9], theirs[7:9])
    # Nothing was unlearned.
    assert torch.equal(mend(theirs, theirs, grid, strategy, 1.0).weight, theirs)
    # What is mended is not mended again, from a bf16 file either.
    again = mend(found.weight, theirs, grid, strategy, 1.0)
    assert torch.equal(again.weight, found.weight)
    assert again.moved == 0
    stored = found.weight.bfloat16().float()
    assert torch.equal(mend(stored, theirs, grid, strategy, 1.0).weight, stored)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_concentrated_step_is_a_whole_one_and_moves_no_other_weight(name: str) -> None:
    """Every moved weight has the next code, at its old one's place, and all others their own."""
    ours, theirs = pair(64, 256, 6)
    spec, grid = conditions.find_condition(name), grid_of(name)
    found, levels = mend(ours, theirs, grid, "concentrated", 1.0), conditions.levels(spec, theirs)
    moved = found.weight != theirs
    assert int(moved.sum()) == found.moved > 0
    goal = levels.above.where(ours > theirs, levels.below).where(moved, levels.values)
    # FP4 has levels beside 0 that count as 0.
    atol = 0.006 * float(theirs.abs().max()) if name == "bnb-fp4" else 1e-7
    for stored in (found.weight, found.weight.bfloat16().float()):
        rounded = conditions.levels(spec, stored).values
        assert torch.allclose(rounded, goal, rtol=1e-6, atol=atol)
    if name == "rtn-int4":
        step, place = (goal - levels.values).abs(), theirs - levels.values
        free = moved & (place.abs() < 0.37 * step) & (goal.abs() < 6.5 * step)
        assert torch.allclose((found.weight - goal)[free], place[free], rtol=0, atol=1e-7)
        assert int(free.sum()) > found.moved / 2


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_whole_steps_stay(strategy: Strategy) -> None:
    _, theirs = pair(64, 256, 4)
    spec = conditions.find_condition("rtn-int4")
    levels = conditions.levels(spec, theirs)
    draw = torch.rand(theirs.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    ours = levels.above.where(draw & levels.above.isfinite(), levels.values)
    found = mend(ours, levels.values, grid_of("rtn-int4"), strategy, 1.0)
    assert torch.equal(found.weight, ours)


def by_mender(
    ours: torch.Tensor,
    theirs: torch.Tensor,
    specs: Sequence[ConditionSpec],
    strength: float = 1.5,
    strategy: Strategy = "concentrated",
    stored: torch.dtype = torch.float32,
) -> tuple[torch.Tensor, Totals]:
    model = Weights("-", {}, ("w",), lambda _: ours)
    mender = Mender(model, specs, (), strategy, strength)
    return mender.mend("w", ours, theirs, stored, torch.float32), mender.totals


def test_a_matrix_of_whose_update_rounding_takes_less_than_a_third_is_left() -> None:
    """At every precision asked for: where one of them takes more, it is mended."""
    names = "rtn-int4", "rtn-int8"
    specs = [conditions.find_condition(name) for name in names]
    levels = conditions.levels(specs[0], pair(64, 256, 4)[1])
    theirs = levels.values
    step = (levels.above - theirs).nan_to_num(0.0, 0.0, 0.0)
    whole = torch.rand(theirs.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    lost = step.where(whole & (torch.arange(256) < 64), step * 0.49)
    for update, asked, left in (
        (step.where(whole, step * 0.49), specs, True),
        (lost, specs[1:], True),  # 8 bits keep it
        (lost, specs[:1], False),
        (lost, specs[::-1], False),
    ):
        found, totals = by_mender(theirs + update, theirs, asked)
        assert torch.equal(found, theirs + update) == left
        assert (totals.moved == 0, totals.rows_left == 64) == (left, left)


def test_a_matrix_never_keeps_less_than_it_did() -> None:
    """Of an update of half steps many weights move, and the noise of so many would count for more
    than what the matrix lacks: then steps begin at Q(U). What a low strength would take away stays.
    """
    spec = conditions.find_condition("rtn-int4")
    levels = conditions.levels(spec, pair(64, 256, 4)[1])
    step = (levels.above - levels.values).nan_to_num(0.0, 0.0, 0.0)
    whole = torch.rand(step.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    ours = levels.values + step.where(whole & (torch.arange(256) < 64), step * 0.49)
    counted = mend(ours, levels.values, grid_of("rtn-int4"), "concentrated", 1.5).weight
    for strength, expected in ((1.5, 1.0), (0.3, None)):
        found, totals = by_mender(ours, levels.values, [spec], strength)
        on_grid = mend(ours, levels.values, grid_of("rtn-int4"), "grid", 1.0).weight
        assert torch.equal(found, on_grid if expected else ours)
        before, after = (sums["rtn-int4"] / totals.update for sums in (totals.before, totals.after))
        assert after == pytest.approx(expected or before, abs=0.01)
        assert (totals.on_grid, totals.better) == ((1, 0) if expected else (0, 1))
        d = ours.double() - levels.values.double()
        rounded = conditions.levels(spec, counted).values.double() - levels.values.double()
        assert float((rounded * d).sum() / (d * d).sum()) < before < 0.4


def test_the_order_of_precisions_does_not_matter() -> None:
    """Steps in the finer bins would be lost in the wider ones."""
    specs = [conditions.find_condition(name) for name in ("rtn-int5-g64", "rtn-int4")]
    ours, theirs = pair(64, 256, 4)
    found = [by_mender(ours, theirs, order) for order in (specs, specs[::-1])]
    assert torch.equal(found[0][0], found[1][0])
    totals = found[0][1]
    assert all(totals.after[spec.name] > 0.95 * totals.update for spec in specs)
    assert totals.before["rtn-int4"] < 0.5 * totals.update


def test_a_matrix_that_was_rounded_to_its_dtype_alone_was_not_unlearned() -> None:
    theirs = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    ours, spec = theirs.bfloat16().float(), [conditions.find_condition("rtn-int4")]
    assert not torch.equal(ours, theirs)
    for strategy in ("grid", "concentrated"):
        found, totals = by_mender(ours, theirs, spec, 1.5, strategy, torch.bfloat16)
        assert torch.equal(found, ours)
        assert (totals.update, totals.moved) == (0, 0)


def test_of_equals_the_first_column_moves() -> None:
    theirs = torch.tensor([[0.7, 0.0, 0.0, 0.0, 0.0]])
    ours = theirs + torch.tensor([[0.0, 0.03, 0.03, 0.03, 0.03]])
    # |d|^2 is 0.0036, a step of 0.1 gains 0.003; its noise counts 0.0035.
    for strategy, strength in zip(STRATEGIES, (1.0, 2.0), strict=True):
        found = mend(ours, theirs, grid_of("rtn-int4"), strategy, strength)
        assert found.weight[0].tolist() == pytest.approx([0.7, 0.1, 0.0, 0.0, 0.0])


def test_threads_change_nothing() -> None:
    ours, theirs = pair(512, 768, 5)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append([mend(ours, theirs, grid_of("rtn-int4"), s, 0.9) for s in STRATEGIES])
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one.weight, other.weight)
        assert one[1:] == other[1:]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_above_the_floor_every_changed_weight_has_another_code(scheme: str) -> None:
    spec = conditions.find_condition(scheme)
    ours, theirs = pair(32, 128, 3, size=0.01)
    found = mend(ours, theirs, grid_of(scheme), "floor", 1.0)
    changed = found.weight != theirs
    assert 0 < int(changed.sum()) == found.moved < changed.numel()
    for stored in (found.weight, found.weight.bfloat16().float()):
        first, last = (conditions.encode(spec, w).codes for w in (theirs, stored))
        assert torch.equal(first != last, changed)
    assert bool(
        (found.weight[changed] - theirs[changed]).sign().eq((ours - theirs)[changed].sign()).all()
    )
    assert torch.equal(mend(theirs, theirs, grid_of(scheme), "floor", 1.0).weight, theirs)


def test_a_change_is_dropped_raised_or_left_by_hand() -> None:
    """Int4 with steps of 1: bins end at halves, a raised weight lies a quarter of a half beyond."""
    theirs = torch.tensor([[7.0, 0.0, 0.0, 0.0, 0.3, -7.0, 6.9, 0.0]])
    ours = theirs + torch.tensor([[0.9, 0.3, 0.4, 0.8, -0.2, 3.0, 0.9, -5.0]])
    found = mend(ours, theirs, grid_of("rtn-int4"), "floor", 1.0).weight
    expected = [7.0, 0.0, 0.625, 0.8, 0.3, -7.0, 6.9, -1.0]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-6)
