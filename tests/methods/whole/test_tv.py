"""The task vector's arithmetic."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from unlearnbench.methods.whole.tv import negate


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
