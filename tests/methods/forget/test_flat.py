"""FLAT: closed values, directions, and what padding does."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.methods.forget.helpers import WIDTH, WORDS, loss, part
from unlearnbench.methods.rows import IGNORED, Part

VALUES: dict[str, Callable[[float, float], float]] = {
    "kl": lambda e, f: -e + math.exp(f - 1),
    "tv": lambda e, f: (math.tanh(f) - math.tanh(e)) / 2,
    "pearson": lambda e, f: -e + f * f / 4 + f,
}


def certain(p: float) -> Part:
    """Rows whose learned tokens all have the probability ``p``."""
    empty = part(torch.zeros(3, WIDTH, WORDS, dtype=torch.float64))
    logits = empty.logits.clone()
    height = math.log(p * (WORDS - 1) / (1 - p))
    logits[:, :-1].scatter_(2, empty.labels[:, 1:, None].clamp(min=0), height)
    return replace(empty, logits=logits.requires_grad_())


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize(("e", "f"), [(0.3, 0.3), (0.2, 0.9), (0.7, 0.05)])
def test_it_has_the_closed_value_and_falls_as_it_should(name: str, e: float, f: float) -> None:
    given = replace(certain(f), alternatives=certain(e))
    found = loss("flat", given, divergence=name)
    assert found.item() == pytest.approx(VALUES[name](e, f), abs=1e-12)
    mine, other = torch.autograd.grad(found, [given.logits, given.others().logits])
    at = given.labels[1, 2]
    assert mine[1, 1, at] > 0 > other[1, 1, at]


def test_padding_changes_nothing() -> None:
    def wide(given: Part) -> Part:
        logits = torch.cat([given.logits, torch.full((3, 2, WORDS), 9.0)], dim=1)
        labels = torch.cat([given.labels, torch.full((3, 2), IGNORED)], dim=1)
        return replace(given, logits=logits, labels=labels)

    mine, other = certain(0.4), certain(0.6)
    first = loss("flat", replace(mine, alternatives=other))
    second = loss("flat", replace(wide(mine), alternatives=wide(other)))
    assert second.item() == pytest.approx(first.item(), abs=1e-12)
