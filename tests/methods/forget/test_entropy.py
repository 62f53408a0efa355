"""Entropy's bounds; the loss itself is held in test_methods_losses."""

from __future__ import annotations

import math

import pytest
import torch

from tests.methods.forget.helpers import ROWS, WIDTH, WORDS, drawn, loss, part


def test_it_lies_between_minus_the_log_of_the_vocabulary_and_0() -> None:
    even = part(torch.zeros(ROWS, WIDTH, WORDS, dtype=torch.float64))
    assert loss("entropy", even).item() == pytest.approx(-math.log(WORDS), abs=1e-12)
    assert -math.log(WORDS) < loss("entropy", part(drawn())).item() < 0
    sure = torch.zeros(ROWS, WIDTH, WORDS, dtype=torch.float64)
    sure[:, :, 3] = 1e4
    assert loss("entropy", part(sure)).item() == 0.0
