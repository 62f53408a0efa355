"""``min_survival`` from real checkpoints: against numpy, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.cli.test_main import call
from tests.conftest import Toy
from unlearnbench import evaluate

Check = Callable[..., int]


def expected(model: Path, target: Path) -> float:
    """Of int4 per row over the inner matrices, in double precision."""
    kept = update = 0.0
    ours, theirs = (load_file(path / "model.safetensors") for path in (model, target))
    for name in ours:
        if name.endswith("proj.weight"):
            u, t = ours[name].astype(np.float64), theirs[name].astype(np.float64)
            rounded = []
            for w in (u, t):
                step = np.abs(w).max(axis=1, keepdims=True) / 7
                rounded.append(np.round(w / step) * step)
            kept += float(((rounded[0] - rounded[1]) * (u - t)).sum())
            update += float(((u - t) ** 2).sum())
    return kept / update


@pytest.fixture
def check(tiny: Path, toy: Toy, tmp_path: Path) -> Check:
    """Runs ``check`` on a model and its target, below ``models``, with a policy's lines."""
    models, made = tmp_path / "models", np.random.default_rng(3)
    for name, size in (("target", 0.0), ("unlearned", 1e-3)):
        shutil.copytree(tiny, models / name)
        weights = load_file(tiny / "model.safetensors")
        moved = {}
        for n, w in weights.items():  # small weights move, most of them inside int4's zero bin
            noise = made.standard_normal(w.shape) * (np.abs(w) < np.quantile(np.abs(w), 0.12))
            moved[n] = (w + size * noise).astype(np.float32) if w.ndim == 2 else w
        save_file(moved, models / name / "model.safetensors", {"format": "pt"})
        evaluate(models / name, "toy_knowmem_f", "none,rtn-int4", **toy.options)

    def run(least: str, model: str = "unlearned", precisions: str = "[none, rtn-int4]") -> int:
        policy = tmp_path / "policy.yaml"
        rule = f"min_survival: {least}\n"
        policy.write_text(f"tasks: [toy_*]\nprecisions: {precisions}\n{rule}", encoding="utf-8")
        (runs,), (target,) = toy.out.glob(f"{model}-*"), toy.out.glob("target-*")
        ends: Sequence[str] = ["--target", str(target), "--retrained", str(target)]
        return call("check", str(runs), "--policy", str(policy), *ends)

    return run


def test_a_policy_may_demand_that_the_update_survives(
    check: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    found = expected(models / "unlearned", models / "target")
    assert 0.02 < found < 0.98
    assert check(f"{found - 0.01:.3f}") == 0
    assert f"{found:.2f} of the update is left" in capsys.readouterr().out
    assert check(f"{found + 0.01:.3f}") == 1
    assert "repair" in capsys.readouterr().out
    assert check("0.5", "target") == 2
    assert "there is no update" in capsys.readouterr().err
    assert check("0.5", precisions="[none]") == 2
    assert "min_survival fits nothing" in capsys.readouterr().err
    weights = load_file(models / "unlearned" / "model.safetensors")
    save_file({n: w + 1 for n, w in weights.items()}, models / "unlearned" / "model.safetensors")
    assert check("0.5") == 2
    assert "holds other weights than those that" in capsys.readouterr().err
    shutil.rmtree(models / "unlearned")
    assert check("0.5") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "unlearned" in line
