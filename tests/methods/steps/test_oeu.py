"""The projection of the forget gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.methods.steps.toys import toy_step
from unlearnbench.methods.base import NoOptions
from unlearnbench.methods.steps import oeu


def along(forget: list[float], retain: list[float]) -> np.ndarray:
    """What is descended along, for losses that are linear."""
    f, r = (torch.tensor(x, dtype=torch.float64) for x in (forget, retain))
    step = toy_step([0.0] * len(f), lambda w: w @ f, lambda w: w @ r)
    found: np.ndarray = oeu.gradient(step, NoOptions()).of["w"].numpy()
    return found


def test_what_is_added_to_the_retain_gradient_is_orthogonal_to_it() -> None:
    rng = np.random.default_rng(0)
    f, r = rng.normal(size=7), rng.normal(size=7)
    left = along(f.tolist(), r.tolist()) - r
    assert left @ r == pytest.approx(0.0, abs=1e-12)
    assert left == pytest.approx(f - (f @ r) / (r @ r) * r, abs=1e-12)


def test_limits() -> None:
    assert along([2.0, 4.0], [1.0, 2.0]) == pytest.approx([1.0, 2.0]), "parallel: nothing is left"
    assert along([0.0, 3.0], [2.0, 0.0]).tolist() == [2.0, 3.0], "orthogonal: as it is"
    assert along([1.0, 3.0], [0.0, 0.0]).tolist() == [1.0, 3.0], "no retain gradient"
