"""Masks, task vectors and WHP's logits, as pure functions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unlearnbench.errors import MetricError
from unlearnbench.methods.base import IGNORED, Knobs
from unlearnbench.methods.sure import choose_rows
from unlearnbench.methods.tv import negate
from unlearnbench.methods.whp_ft import generic_labels
from unlearnbench.models.joined import generic_logits


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
    masks = choose_rows(grads, Knobs(sure_top=top))
    assert {(n, i) for n, m in masks.items() for i in range(len(m)) if m[i]} == expected


def test_a_module_is_chosen_as_a_whole() -> None:
    grads = gradients()
    masks = choose_rows(grads, Knobs(sure_level="module", sure_top=0.34))
    largest = sorted(grads, key=lambda n: float(grads[n].norm()), reverse=True)[:2]
    assert {n for n, mask in masks.items() if mask.all()} == set(largest)
    assert all(bool(mask.all()) or not bool(mask.any()) for mask in masks.values())
    assert {n: mask.shape for n, mask in masks.items()} == {n: (len(grads[n]),) for n in grads}


def test_a_row_without_gradient_is_never_chosen() -> None:
    grads = {"a": torch.zeros(10, 3), "b": torch.zeros(10, 3)}
    grads["b"][4] = 1.0
    masks = choose_rows(grads, Knobs(sure_top=1.0))
    assert sum(int(mask.sum()) for mask in masks.values()) == 1
    assert bool(masks["b"][4])


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_a_gradient_that_says_nothing_raises(value: float) -> None:
    with pytest.raises(MetricError, match="0 or not finite"):
        choose_rows({"a": torch.full((3, 3), value)}, Knobs())


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: torch.randn(5, 4, generator=generator).to(dtype) for n in ("a", "b")}
    tensors["a"][0, 0] = -0.0
    return {**tensors, "count": torch.tensor([seed])}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_alpha_0_and_an_equal_reinforced_model_are_the_target_bit_for_bit(
    dtype: torch.dtype,
) -> None:
    target = state(0, dtype)
    for reinforced, alpha in ((state(1, dtype), 0.0), (state(0, dtype), 1.0), (state(0, dtype), 7)):
        moved = negate(target, reinforced, alpha)
        for name, tensor in target.items():
            assert moved[name].dtype == tensor.dtype
            assert torch.equal(bits(moved[name]), bits(tensor)), name


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Equal only where the bits are, unlike 0.0 and -0.0."""
    return tensor.contiguous().view(torch.uint8)


def test_the_distance_grows_with_alpha_and_the_formula_holds() -> None:
    target, reinforced = state(0), state(1)
    distances = []
    for alpha in (0.0, 0.5, 1.0, 2.0, 5.0):
        moved = negate(target, reinforced, alpha)
        expected = target["a"].numpy().astype(float) - alpha * (
            reinforced["a"].numpy().astype(float) - target["a"].numpy().astype(float)
        )
        assert np.allclose(moved["a"].numpy(), expected, rtol=1e-6)
        distances.append(float((moved["a"] - target["a"]).norm()))
    assert distances == sorted(distances)
    assert len(set(distances)) == 5
    assert int(negate(target, reinforced, 2.0)["count"]) == 0, "a counter is no weight"


def test_whp_holds_back_what_the_reinforced_model_prefers() -> None:
    rng = np.random.default_rng(0)
    baseline, reinforced = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    expected = [
        [b - 1.5 * max(r - b, 0.0) for b, r in zip(*pair, strict=True)]
        for pair in zip(baseline, reinforced, strict=True)
    ]
    found = generic_logits(torch.tensor(baseline), torch.tensor(reinforced), 1.5)
    assert np.abs(found.numpy() - np.array(expected)).max() < 1e-12


def test_generic_labels_are_predictions_one_position_earlier() -> None:
    rng = np.random.default_rng(0)
    baseline, reinforced = rng.normal(size=(2, 4, 6)), rng.normal(size=(2, 4, 6))
    labels = torch.tensor([[0, 1, 2, 3], [IGNORED, IGNORED, 5, IGNORED]])
    found = generic_labels(torch.tensor(baseline), torch.tensor(reinforced), labels, 2.0)
    generic = baseline - 2.0 * np.maximum(reinforced - baseline, 0)
    best = generic.argmax(axis=-1)
    assert found.tolist() == [
        [0, *best[0, :3].tolist()],
        [IGNORED, IGNORED, int(best[1, 1]), IGNORED],
    ]
