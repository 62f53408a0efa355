"""The choice of rows whose gradients differ most."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods.contrast import contrasts, least_alike, require_one_process
from unlearnbench.methods.rows import Example


def gradients(seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    shapes = {"a": (30, 8), "b": (5,), "c": (20, 16)}
    return {name: torch.tensor(rng.normal(size=shape)) for name, shape in shapes.items()}


@pytest.mark.parametrize("top", [0.02, 0.1, 0.5, 1.0])
def test_rows_are_those_of_least_cosine_and_a_vector_is_one(top: float) -> None:
    first, second = gradients(0), gradients(1)
    found = []
    for name in first:
        pairs = list(zip(*(g[name].numpy() for g in (first, second)), strict=True))
        if name == "b":
            pairs = [(first[name].numpy(), second[name].numpy())]
        for row, (x, y) in enumerate(pairs):
            found.append((x @ y / np.linalg.norm(x) / np.linalg.norm(y), name, row))
    expected = {(n, r) for _, n, r in sorted(found)[: math.ceil(top * 51)]}
    masks = least_alike(first, second, top)
    chosen = {(n, r) for n in ("a", "c") for r in range(len(masks[n])) if masks[n][r]}
    assert masks["b"].all() or not masks["b"].any()
    assert chosen | ({("b", 0)} if masks["b"].all() else set()) == expected
    scaled = {name: 1e-3 * g for name, g in first.items()}
    again = least_alike(scaled, {name: 7.0 * g for name, g in second.items()}, top)
    assert all(torch.equal(again[name], masks[name]) for name in masks)


def test_ties_go_by_order_and_rows_of_gradient_0_are_never_chosen() -> None:
    first = {"a": torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])}
    second = {"a": torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]])}
    assert least_alike(first, second, 0.25)["a"].tolist() == [True, False, False, False]
    assert least_alike(first, second, 0.5)["a"].tolist() == [True, False, True, False]
    assert least_alike(first, second, 1.0)["a"].tolist() == [True, False, True, True]
    with pytest.raises(MetricError, match="all gradients are 0"):
        least_alike({"a": torch.ones(3, 2)}, {"a": torch.zeros(3, 2)}, 0.5)
    with pytest.raises(MetricError, match="gradient of a is not finite"):
        least_alike({"a": torch.full((3, 2), math.nan)}, {"a": torch.ones(3, 2)}, 0.5)


def context(generic: tuple[int, ...]) -> Any:
    example = Example((0, 5, 9), (-100, 5, 9))
    return SimpleNamespace(
        forget=(example,),
        copy_of_target=lambda: None,
        reinforce=lambda: None,
        relabel=lambda models, label: (Example((0, 5, 9), generic),),
    )


def test_tokens_that_are_generic_already_are_left_out() -> None:
    (found,) = contrasts(context((-100, 5, 7)))
    assert found.labels == (-100, -100, 9)
    assert found.alternatives[0].labels == (-100, -100, 7)
    assert found.alternatives[0].ids == found.ids
    with pytest.raises(MetricError, match="the true one everywhere"):
        contrasts(context((-100, 5, 9)))


def test_it_is_refused_with_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(OptionError, match="contrast trains a model before it chooses"):
        require_one_process("contrast")
