"""The ridge edit against its normal equations and its objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.helpers import go, same, weights
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods.rows import Example
from unlearnbench.methods.whole.grom import GromOptions, frequencies, ridge
from unlearnbench.training.job import Job


def solve(kf: Any, kr: Any, d: Any, **numbers: Any) -> Any:
    """P of keys (neurons, columns) and goals (out, columns)."""
    s, r = kf.shape[1], kr.shape[1]
    forget, cross, retain = map(torch.tensor, (kf @ kf.T / s, d @ kf.T / s, kr @ kr.T / r))
    return ridge(forget, cross, retain, GromOptions(**numbers)).numpy()


def test_the_edit_solves_its_equations_and_no_other_is_better() -> None:
    rng = np.random.default_rng(0)
    kf, kr, d = rng.normal(size=(6, 9)), rng.normal(size=(6, 20)), rng.normal(size=(4, 9))
    found = solve(kf, kr, d, grom_retain=2.0, grom_rho=0.1)
    a = kf @ kf.T / 9 + 2.0 * kr @ kr.T / 20
    mu = 0.1 * np.diag(a).mean()
    assert np.allclose(found @ (a + mu * np.eye(6)), d @ kf.T / 9, atol=1e-12)

    def objective(p: Any) -> float:
        far = ((p @ kf - d) ** 2).sum() / 9
        return float(2.0 / 20 * ((p @ kr) ** 2).sum() + far + mu * (p**2).sum())

    for _ in range(50):
        assert objective(found + 1e-3 * rng.normal(size=found.shape)) > objective(found)


def test_orthogonal_keys_are_moved_to_the_goal_and_the_others_stay() -> None:
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    kf, kr, d = basis[:, :3], basis[:, 3:], rng.normal(size=(4, 3))
    found = solve(kf, kr, d, grom_rho=1e-12)
    assert np.allclose(found @ kr, 0, atol=1e-9)
    assert np.allclose(found @ kf, d, atol=1e-9)


def test_a_token_as_frequent_in_the_retain_set_is_left() -> None:
    forget = [Example((9, 1, 1, 2, 3), (9, 1, 1, 2, 3))]
    retain = [Example((9, 1, 4), (9, 1, 4)), Example((9, 3, 2, 2, 2), (9, 3, -100, 2, 2))]
    alpha = frequencies(forget, retain, 6)  # of 1: 2/4 and 1/5; of 2: 1/4 and 2/5; of 3: 1/4, 1/5
    expected = [1.0, 1 - 0.2 / 0.5, 0.0, 1 - 0.2 / 0.25, 0.0, 1.0]
    assert alpha.tolist() == pytest.approx(expected, abs=1e-9)


def test_only_the_blocks_asked_for_change_and_strength_0_changes_none(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    go(job, tmp_path / "none", "grom", knobs={"grom_strength": 0.0})
    assert same(weights(tiny), weights(tmp_path / "none"))
    for way in ("suppress", "corrupt"):
        go(job, tmp_path / way, "grom", knobs={"grom_strength": 5.0, "grom_way": way})
        before, after = weights(tiny), weights(tmp_path / way)
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed == {"model.layers.1.mlp.down_proj.weight"}
    with pytest.raises(OptionError, match="--grom-from 0 --grom-to 2: use 0 to 1"):
        go(job, tmp_path / "far", "grom", knobs={"grom_from": 0, "grom_to": 2})
    alike = Job(job.model, job.out, job.retain, job.retain, options=job.options)
    with pytest.raises(MetricError, match="nothing to suppress"):
        go(alike, tmp_path / "alike", "grom")
