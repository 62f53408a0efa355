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
    imagined,
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
    rates = [1e-5] * 100  # nothing grows beyond 2^-8
    head, four, eight = tell(weights(0.008), "bf16", rates, ["rtn-int4", "rtn-int8"])
    assert re.fullmatch(
        r"weights in bf16 at --lr 1e-05: 3\d.* the inner weights can move, those up to 0.00391",
        head,
    )
    assert "survival 0.00 at rtn-int4" in four
    helps = "; more is kept by --weights-dtype fp32 or bf16-sr"
    assert f"{helps} or --lr " in four
    assert re.search(r"survival (0\.[89]|1\.0)\d at rtn-int8", eight)
    assert "kept by" not in eight
    rounded = tell(weights(0.008), "bf16-rounded", rates, ["rtn-int4"])
    assert rounded[1] == four
    (_, far) = tell(weights(5.0), "bf16", rates, ["rtn-int4"])
    assert far.endswith(helps), "no rate of those tried helps"


@pytest.mark.parametrize("dtype", ["fp32", "bf16-sr"])
def test_nothing_is_held_where_rounding_keeps_the_mean(dtype: str) -> None:
    rows = weights(0.008)
    ours = imagined(rows, dtype, [1e-5] * 100)
    found = survival(ours, rows, conditions.find_condition("rtn-int8"))
    assert found == pytest.approx(1, abs=0.1)
    head, _ = tell(rows, dtype, [1e-5] * 5, ["rtn-int8"])
    assert head == f"weights in {dtype} at --lr 1e-05: all inner weights can move"


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
    found = tell(weights(0.008), "bf16", [1e-12] * 10, ["rtn-int4", "rtn-int8"])
    assert found[1:] == [
        "no sampled weight moves in 10 steps; use --weights-dtype fp32 or bf16-sr"
    ], "no forecast of what would survive"
