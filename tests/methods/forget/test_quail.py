"""The hinge of a margin in logits; the loss itself is held in test_methods_losses."""

from __future__ import annotations

import pytest
import torch

from tests.methods.forget.helpers import drawn, gradient, loss, part


def test_at_the_target_the_hinge_is_its_margin_and_far_from_it_0() -> None:
    logits = drawn()
    there = part(logits, target=logits.detach())
    ascent = loss("ga", there).item()
    found = loss("quail", there, quail_margin=0.7, quail_weight=3.0)
    assert found.item() == pytest.approx(ascent + 3.0 * 0.7, abs=1e-12)
    ascending = gradient("ga", there)
    assert torch.equal(gradient("quail", there, quail_margin=0.7), ascending), "defined as 0"
    far = part(logits, target=logits.detach() * -9)
    assert loss("quail", far, quail_margin=0.01).item() == pytest.approx(ascent, abs=1e-12)


def test_a_shift_of_all_logits_is_no_move_and_weight_0_is_ascent_to_the_bit() -> None:
    logits, target = drawn(), drawn(7).detach()
    first = loss("quail", part(logits, target), quail_margin=2.0)
    shifted = loss("quail", part(logits + 5.0, target - 2.0), quail_margin=2.0)
    assert first.item() == pytest.approx(shifted.item(), abs=1e-12)
    without = gradient("quail", part(logits, target), quail_weight=0.0)
    assert torch.equal(without, gradient("ga", part(logits)))
