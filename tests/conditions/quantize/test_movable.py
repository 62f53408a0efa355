"""What a training can move, against brute force over all numbers of a binade."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from unlearnbench import conditions
from unlearnbench.conditions.quantize.movable import forecast, limit, reach, rows_of

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


def test_reach_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    weight = np.asarray(rng.standard_normal((4, 50)) * 0.01, np.float32)
    highest, way = 0.004, 0.001
    movable = leaving = 0
    for row in weight:
        step = np.abs(row).max() / np.float32(7)
        for w in row:
            if abs(w) > highest:
                continue
            movable += 1
            ends = (min(w + way, highest), max(w - way, -highest))
            leaving += any(np.round(end / step) != np.round(w / step) for end in ends)
    found = reach([torch.from_numpy(weight)], conditions.find_condition("rtn-int4"), highest, way)
    assert found.movable == movable / weight.size
    assert found.leaving == leaving / movable
    assert 0 < found.leaving < 1


def weights(half_bin: float) -> list[torch.Tensor]:
    """Rows whose zero bin of rtn-int4 reaches ``half_bin``."""
    row = torch.linspace(-1.9, 1.9, 256).repeat(4, 1) * half_bin
    row[:, 0] = 14 * half_bin
    return [row]


def test_forecast_says_what_is_held_and_what_helps() -> None:
    lr = 1e-5  # moves nothing beyond 2^-8
    (held,) = forecast(weights(0.005), "bf16", lr, 1.0, ["rtn-int4"])
    assert held.startswith("weights in bf16 at --lr 1e-05, rtn-int4: 40.6%")
    assert "0% of those out of their bin; expect that what is forgotten comes back" in held
    assert held.endswith("use --weights-dtype fp32 or --lr 2e-05")
    (rounded,) = forecast(weights(0.005), "bf16-rounded", lr, 1.0, ["rtn-int4"])
    assert rounded == held.replace("in bf16 at", "in bf16-rounded at")
    (eight,) = forecast(weights(0.005), "bf16", lr, 1.0, ["rtn-int8"])
    assert "100% of those out of their bin" in eight
    assert "expect" not in eight
    (far,) = forecast(weights(50.0), "bf16", lr, 1.0, ["rtn-int4"])
    assert far.endswith("use --weights-dtype fp32")


@pytest.mark.parametrize("dtype", ["fp32", "bf16-sr"])
def test_nothing_is_held_where_rounding_keeps_the_mean(dtype: str) -> None:
    (line,) = forecast(weights(0.005), dtype, 1e-5, 1.0, ["rtn-int8", "rtn-int4"])
    assert "all inner weights can move" in line
    assert "(rtn-int8, rtn-int4)" in line


def test_few_steps_go_no_farther() -> None:
    (line,) = forecast(weights(0.003), "bf16", 1e-5, 1e-5, ["rtn-int4"])
    assert "expect" in line
    (line,) = forecast(weights(0.003), "bf16", 1e-5, 1e-2, ["rtn-int4"])
    assert "expect" not in line


def test_rows_are_spread_over_a_matrix() -> None:
    matrices: list[Any] = [torch.arange(100.0)[:, None].bfloat16(), torch.ones(3, 2)]
    first, second = rows_of(matrices)
    assert first.dtype == torch.float32
    assert first[:, 0].tolist() == list(range(0, 100, 7))
    assert second.shape == (3, 2)
