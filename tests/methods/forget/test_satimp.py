"""SatImp: its limiting cases."""

from __future__ import annotations

import torch

from tests.methods.forget.helpers import drawn, gradient, part


def test_without_the_second_power_it_is_wga_and_without_both_gradient_ascent() -> None:
    given = part(drawn())
    for beta in (0.0, 1.0, 3.0):
        ours = gradient("satimp", given, beta1=beta, beta2=0.0)
        assert torch.allclose(ours, gradient("wga", given, beta=beta), rtol=0, atol=1e-15)
    both = gradient("satimp", given, beta1=0.0, beta2=0.0)
    assert torch.allclose(both, gradient("ga", given), rtol=0, atol=1e-15)


def test_a_certain_token_has_no_weight() -> None:
    logits = torch.zeros_like(drawn()).detach()
    given = part(logits)
    logits[:, :-1].scatter_(2, given.labels[:, 1:, None].clamp(min=0), 50.0)
    assert bool((gradient("satimp", part(logits.requires_grad_())).abs() < 1e-18).all())
