"""WGA: its limiting cases."""

from __future__ import annotations

import torch

from tests.methods.forget.helpers import drawn, gradient, loss, part


def test_without_power_it_is_gradient_ascent() -> None:
    given = part(drawn())
    assert torch.equal(loss("wga", given, beta=0.0), loss("ga", given))
    assert torch.equal(gradient("wga", given, beta=0.0), gradient("ga", given))


def test_what_is_forgotten_moves_nothing_more() -> None:
    logits = torch.zeros_like(drawn()).detach()
    given = part(logits)
    logits[:, :-1].scatter_(2, given.labels[:, 1:, None].clamp(min=0), -50.0)
    logits.requires_grad_()
    assert gradient("wga", given).abs().max() < 1e-18 < gradient("ga", given).abs().max()
