"""Sharpness-aware steps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.methods.steps.toys import toy_step
from tests.training.helpers import go, same, weights
from unlearnbench.methods.steps import sam
from unlearnbench.training.job import Job


def test_a_quadratic_loss_has_a_closed_form() -> None:
    """Of w A w / 2 the gradient at w + rho g / |g| is A (w + rho A w / |A w|)."""
    a = np.array([[3.0, 1.0, 0.0], [1.0, 2.0, 0.5], [0.0, 0.5, 4.0]])
    w, b = np.array([0.3, -1.2, 2.0]), np.array([1.0, 0.0, -2.0])
    matrix = torch.tensor(a)
    step = toy_step(w.tolist(), lambda v: v @ matrix @ v / 2, lambda v: v @ torch.tensor(b))
    found = sam.gradient(step, sam.SamOptions(rho=0.7))
    worst = w + 0.7 * (a @ w) / np.linalg.norm(a @ w)
    assert np.allclose(found.of["w"].numpy(), a @ worst + b, rtol=0, atol=1e-12)
    assert found.terms == pytest.approx({"forget": worst @ a @ worst / 2, "retain": w @ b})
    assert step.weights["w"].tolist() == w.tolist(), "the weights are what they were"


def test_a_loss_without_a_gradient_moves_nothing() -> None:
    step = toy_step([1.0, 2.0], lambda v: 0.0 * v.sum())
    assert sam.gradient(step, sam.SamOptions()).of["w"].tolist() == [0.0, 0.0]


def test_radius_0_is_the_method_itself_bit_for_bit(job: Job, tmp_path: Path) -> None:
    plain = go(job, tmp_path / "plain", "npo_gdr")
    zero = go(job, tmp_path / "zero", "npo_gdr_sam", knobs={"rho": 0.0})
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "zero"))
    assert zero.losses == plain.losses
    wide = go(job, tmp_path / "wide", "npo_gdr_sam", knobs={"rho": 0.5})
    parts = go(job, tmp_path / "parts", "npo_gdr_sam", knobs={"rho": 0.5}, micro_batch_size=2)
    assert abs(wide.losses[0].loss - plain.losses[0].loss) > 1e-3
    for first, second in zip(wide.losses, parts.losses, strict=True):
        assert second.loss == pytest.approx(first.loss, rel=2e-4)
