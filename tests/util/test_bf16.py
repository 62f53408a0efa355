"""Rounding to bf16 by a draw."""

from __future__ import annotations

import numpy as np
import torch

from unlearnbench.util.bf16 import round_stochastic


def test_a_draw_is_one_of_two_neighbours_and_right_on_average() -> None:
    shares = torch.tensor([0.0, 0.1, 0.5, 0.9])
    lower = torch.tensor([1.0, -1.0, 2**-9, -0.15625])
    spacing = lower.abs().log2().floor().sub(7).exp2() * lower.sign()  # of bf16, away from zero
    values = lower[:, None] + spacing[:, None] * shares
    n = 20_000
    drawn = round_stochastic(values.expand(n, 4, 4), torch.Generator().manual_seed(1))
    up = (drawn != lower[:, None]).double().mean(0)
    assert set(drawn[:, 0, 1].tolist()) == {1.0, 1.0 + 2**-7}
    assert torch.equal(drawn.bfloat16().float(), drawn)
    sigma = np.sqrt(0.25 / n)
    np.testing.assert_allclose(up.numpy(), shares.expand(4, 4).numpy(), atol=5 * sigma)
    assert (up[:, 0] == 0).all()  # a number of bf16 stays
    mean = drawn.double().mean(0)
    off = ((mean - values.double()) / spacing.double()[:, None]).abs()
    assert off.max() < 5 * sigma
