"""What a training can move, against brute force over all numbers of a binade."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from unlearnbench import conditions
from unlearnbench.conditions.quantize.movable import (
    _DRIFT,
    _SPREAD,
    COMMON,
    Planned,
    imagined,
    leaving,
    limit,
    rows_of,
    survival,
    tell,
)

RATES = [1e-6, 1e-5, 3e-5, 8e-5, 1e-3]


def near(value: Fraction, digits: int) -> Fraction:
    """The nearest number with so many significant binary digits, halves to even; exact."""
    if value == 0:
        return value
    size, e = abs(value), 0
    while size >= 2:
        size, e = size / 2, e + 1
    while size < 1:
        size, e = size * 2, e - 1
    unit = Fraction(2) ** (e - digits + 1)
    return round(value / unit) * unit  # Python rounds halves to even


def binade(top: float, digits: int) -> list[Fraction]:
    """All numbers in [top / 2, top)."""
    n = 2 ** (digits - 1)
    return [Fraction(top) * (n + i) / (2 * n) for i in range(n)]


@pytest.mark.parametrize(
    ("dtype", "digits", "lr"), [*(("bf16", 8, lr) for lr in RATES), ("fp16", 11, 1e-5)]
)
def test_the_limit_against_brute_force(lr: float, dtype: str, digits: int) -> None:
    highest, step = limit(lr, dtype), Fraction(lr)
    for exponent in range(-3, 3):
        for w in binade(highest * 2.0**exponent, digits):
            up, down = near(w + step, digits), near(w - step, digits)
            assert (up > w) == (w < highest), "it grows below the limit only"
            assert (down < w) == (w <= highest), "and shrinks at the limit too"
            assert up <= max(w, Fraction(highest)), "in no step beyond it"
    # The words: a step rounds away below 2^(e - digits).
    e = np.floor(np.log2(highest))
    assert 2.0 ** (e - 1 - digits) < lr < 2.0 ** (e - digits)


def test_torch_rounds_so() -> None:
    lr = 8e-5
    highest = limit(lr, "bf16")
    for exponent in range(-2, 3):
        weight = torch.tensor([float(w) for w in binade(highest * 2.0**exponent, 8)]).bfloat16()
        moved = torch.nn.Parameter(weight.clone())
        moved.grad = torch.full_like(weight, -1.0)
        torch.optim.SGD([moved], lr=lr).step()
        assert torch.equal(moved.detach() != weight, weight < highest)


def test_a_weight_never_grows_beyond_the_limit() -> None:
    weight = torch.tensor([1e-4, 3e-3]).bfloat16()
    for _ in range(2000):
        weight = (weight.float() + 8e-5).bfloat16()
    assert weight.tolist() == [limit(8e-5, "bf16")] * 2


def test_a_made_up_training_against_a_loop_of_numpy() -> None:
    """The same draws, added and rounded in double precision."""
    weight, rates = torch.linspace(-0.03, 0.03, 33)[None], [4e-5] * 8
    generator = torch.Generator().manual_seed(0)
    now = np.array([[float(near(Fraction(w), 8)) for w in weight[0].double().tolist()]])
    drift = torch.empty_like(weight).normal_(0, _DRIFT, generator=generator).double().numpy()
    for lr in rates:
        step = torch.empty_like(weight).normal_(0, _SPREAD, generator=generator).double().numpy()
        now = now - lr * np.clip(step + drift, -1, 1)
        now = np.array([[float(near(Fraction(w), 8)) for w in now[0]]])
    (found,) = imagined([weight], "bf16", rates)
    assert (found.numpy() != now).mean() < 0.05  # float32 on the edge of two numbers
    assert (found != weight.bfloat16()).any()
    assert torch.equal(found, imagined([weight], "bf16-rounded", rates)[0])


def weights(half_bin: float) -> list[torch.Tensor]:
    """Normal numbers of bf16 in rows whose zero bin of rtn-int4 reaches ``half_bin``."""
    rows = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)) * half_bin
    rows[:, 0] = 14 * half_bin
    return [rows.bfloat16().float()]


def test_what_is_held_is_told_with_what_helps() -> None:
    planned = Planned("bf16", [1e-5] * 100)  # nothing grows beyond 2^-8
    head, four, eight = tell(weights(0.008), planned, ["rtn-int4", "rtn-int8"])
    says = r"weights in bf16 at --lr 1e-05, 100 steps: (3\d.\d%) of the inner weights can move"
    moves = re.fullmatch(f"{says}, those up to 0.00391", head)
    assert moves
    begin = f"rtn-int4: {moves[1]} can move, none of these can leave their bin; in 100 steps, made"
    assert four.startswith(f"{begin} up: survival 0.00 at rtn-int4: expect ")
    helps = "; more is kept by --weights-dtype fp32 or --weights-dtype bf16-sr or --lr "
    assert re.search(f"{helps}\\S+ or --survive rtn-int4 --survive-forget worst$", four)
    assert f"{moves[1]} can move, all of these can leave their bin; " in eight
    assert re.search(r"survival (0\.[89]|1\.0)\d at rtn-int8", eight)
    assert "kept by" not in eight
    rounded = tell(weights(0.008), planned._replace(dtype="bf16-rounded"), ["rtn-int4"])
    assert rounded[1] == four


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_only_what_keeps_nearly_all_is_named(dtype: str) -> None:
    """Two values in each row, and so none near an edge: small steps are lost in fp32 too."""
    rows = torch.full((16, 256), 1e-3)
    rows[:, 0] = 0.5
    planned = Planned(dtype, [1e-5] * 20)
    (_, far) = tell([rows], planned, ["rtn-int4"])
    assert "survival 0.00 at rtn-int4" in far
    assert far.endswith("; more is kept by --survive rtn-int4 --survive-forget worst")
    (_, none) = tell([rows], planned._replace(can_survive=False), ["rtn-int4"])
    assert none.endswith("pairs"), "nothing that would help is known"
    (_, asked) = tell([rows], planned._replace(survived=["rtn-int4"]), ["rtn-int4"])
    assert asked.endswith("; --survive takes the loss there too, which is not made up")


@pytest.mark.parametrize("precision", COMMON)
def test_what_leaves_its_bin_against_every_number_below_the_limit(precision: str) -> None:
    """Each weight that can move is put on every number up to the limit in turn."""
    spec, highest = conditions.find_condition(precision), 2.0**-7
    row = torch.randn(1, 64, generator=torch.Generator().manual_seed(1)) * 0.004
    row[0, :2] = torch.tensor([0.06, -0.03])
    row = row.bfloat16().float()
    places = torch.tensor([float(w) for e in range(6) for w in binade(highest / 2**e, 8)])
    places = torch.cat([places, -places, torch.tensor([0.0, highest, -highest])])
    own = conditions.encode(spec, row).values
    expected = 0
    for at in range(64):
        if abs(float(row[0, at])) <= highest:
            there = row.repeat(len(places), 1)
            there[:, at] = places
            found = conditions.encode(spec, there).values[:, at]
            # FP4's codes of 0.0052 beside 0 are no step away from it.
            expected += bool(((found - own[0, at]).abs() > 0.01 * 0.06).any())
    assert leaving([row], spec, highest) == expected
    assert precision != "rtn-int4" or 0 < expected < 60


def test_a_row_that_moves_as_a_whole_takes_its_grid_along() -> None:
    rows = torch.tensor([[0.002, -0.002, 0.002, 0.0]])
    assert leaving([rows], conditions.find_condition("rtn-int4"), 2.0**-8) == 4


def test_a_long_training_is_made_up_from_one_end_to_the_other() -> None:
    falling = [1e-4 * (1 - n / 2000) for n in range(2000)]
    planned = Planned("bf16", falling, most=True)
    assert len(planned.made) == 500
    assert planned.made == falling[::4]
    (_, line) = tell(weights(0.008), planned, ["rtn-int8"])
    assert "; in 500 of at most 2000 steps, made up: survival " in line
    assert Planned("bf16", falling[:500]).made == falling[:500]


@pytest.mark.parametrize("dtype", ["fp32", "bf16-sr"])
def test_nothing_is_held_where_rounding_keeps_the_mean(dtype: str) -> None:
    rows = weights(0.008)
    ours = imagined(rows, dtype, [1e-5] * 100)
    found = survival(ours, rows, conditions.find_condition("rtn-int8"))
    assert found == pytest.approx(1, abs=0.1)
    head, line = tell(rows, Planned(dtype, [1e-5] * 5), ["rtn-int4"])
    assert head == f"weights in {dtype} at --lr 1e-05, 5 steps: all of the inner weights can move"
    assert line.startswith("rtn-int4: all can move, all of these can leave their bin; ")


@pytest.mark.parametrize("dtype", ["fp32", "bf16-sr"])
def test_steps_too_small_for_fp32_move_nothing_there(dtype: str) -> None:
    (found,) = weights(0.008)
    rows = [found.where(found.abs() > 1e-4, torch.tensor(2.0**-7))]
    head, line = tell(rows, Planned(dtype, [1e-12] * 10), ["rtn-int4"])
    assert head.endswith("10 steps: none of the inner weights can move, those up to 3.05e-05")
    assert line == "no sampled weight moves in 10 steps; use a larger --lr"


def test_steps_beyond_all_numbers_are_one_line() -> None:
    _, line = tell(weights(0.008), Planned("fp32", [1e37] * 500), COMMON)
    assert line == "made-up steps end beyond all numbers; use a smaller --lr"


def test_nothing_moved_has_no_survival() -> None:
    rows = weights(1.0)
    assert survival(rows, rows, conditions.find_condition("rtn-int4")) is None


def test_rows_are_spread_over_a_matrix_and_matrices_over_a_model() -> None:
    matrices: list[Any] = [torch.arange(100.0)[:, None].bfloat16(), torch.ones(3, 2)]
    first, second = rows_of(matrices)
    assert first.dtype == torch.float32
    assert first[:, 0].tolist() == list(range(0, 100, 7))
    assert second.shape == (3, 2)
    large = rows_of([torch.zeros(8, 4096, device="cpu").expand(8, 4096)] * 224)
    assert 2**17 <= sum(w.numel() for w in large) <= 2**18 + 4096


def test_a_rate_that_moves_nothing_survives_nothing() -> None:
    planned = Planned("bf16", [1e-12] * 10)
    found = tell(weights(0.008), planned, ["rtn-int4", "rtn-int8"])
    assert found[1:] == ["no sampled weight moves in 10 steps; use a larger --lr"], (
        "no forecast of what would survive, and fp32 loses so small steps too"
    )
    generator = torch.Generator().manual_seed(1)
    rows = [(0.3 + torch.rand(16, 1024, generator=generator) / 10).bfloat16().float()]
    (_, line) = tell(rows, Planned("bf16", [1e-5] * 200), ["rtn-int8"])
    helps = "--weights-dtype fp32 or --weights-dtype bf16-sr"
    assert line == f"no sampled weight moves in 200 steps; use {helps}"
