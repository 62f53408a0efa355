"""PDU's flattening: its limiting cases."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.methods.forget.helpers import WORDS, drawn, loss, part


def test_equal_logits_are_its_minimum_and_a_common_shift_changes_nothing() -> None:
    given = part(drawn())
    assert loss("pdu", replace(given, logits=torch.full_like(given.logits, 3.0))).item() == 0
    moved = replace(given, logits=given.logits + 7 * torch.randn(3, 6, 1, dtype=torch.float64))
    assert torch.allclose(loss("pdu", given), loss("pdu", moved), rtol=1e-12)
    one = torch.zeros_like(given.logits)
    one[..., 2] = 5.0
    assert loss("pdu", replace(given, logits=one)).item() == (5 - 5 / WORDS) ** 2
