"""UNDIAL: its limiting cases."""

from __future__ import annotations

import torch

from tests.methods.forget.helpers import drawn, gradient, part


def test_without_lowering_the_target_is_its_minimum() -> None:
    logits = drawn()
    given = part(logits, logits.detach().clone())
    assert gradient("undial", given, beta=0.0).abs().max() < 1e-15
    assert gradient("undial", given, beta=1.0).abs().max() > 1e-3


def test_lowered_without_limit_it_has_the_gradient_of_unlikelihood_at_the_target() -> None:
    """Then what is wanted is the target's own distribution without the true token."""
    logits = drawn()
    given = part(logits, logits.detach().clone())
    expected = gradient("unlikelihood", given)
    assert torch.allclose(gradient("undial", given, beta=1e3), expected, rtol=0, atol=1e-14)
