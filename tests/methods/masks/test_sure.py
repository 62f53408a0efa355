"""SURE's choice of rows and modules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unlearnbench.errors import MetricError
from unlearnbench.methods.masks.sure import SureOptions, choose_rows


def gradients(seed: int = 0) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (30, 8), "b": (50, 4), "c": (20, 16)}
    return {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("top", [0.01, 0.05, 0.33, 0.5, 1.0])
def test_rows_are_those_with_the_largest_norms(top: float) -> None:
    grads = gradients()
    norms = [
        (math.sqrt(sum(float(x) ** 2 for x in row)), name, i)
        for name, grad in grads.items()
        for i, row in enumerate(grad)
    ]
    expected = {(n, i) for _, n, i in sorted(norms, reverse=True)[: math.ceil(top * len(norms))]}
    masks = choose_rows(grads, SureOptions(sure_top=top))
    assert {(n, i) for n, m in masks.items() for i in range(len(m)) if m[i]} == expected


def test_a_module_is_chosen_as_a_whole() -> None:
    grads = gradients()
    masks = choose_rows(grads, SureOptions(sure_level="module", sure_top=0.34))
    largest = sorted(grads, key=lambda n: float(grads[n].norm()), reverse=True)[:2]
    assert {n for n, mask in masks.items() if mask.all()} == set(largest)
    assert all(bool(mask.all()) or not bool(mask.any()) for mask in masks.values())
    assert {n: mask.shape for n, mask in masks.items()} == {n: (len(grads[n]),) for n in grads}


def test_a_row_without_gradient_is_never_chosen() -> None:
    grads = {"a": torch.zeros(10, 3), "b": torch.zeros(10, 3)}
    grads["b"][4] = 1.0
    masks = choose_rows(grads, SureOptions(sure_top=1.0))
    assert sum(int(mask.sum()) for mask in masks.values()) == 1
    assert bool(masks["b"][4])


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_gradient_that_says_nothing_raises(value: float) -> None:
    with pytest.raises(MetricError, match="0 or not finite"):
        choose_rows({"a": torch.full((3, 3), value)}, SureOptions())
