"""Damage and distillation."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from tests.training.helpers import go, same, weights
from unlearnbench.methods.rows import Example, learned_logits
from unlearnbench.methods.whole.undo import Distil, UndoOptions, damage
from unlearnbench.training.batches import as_batch, collate, sums_of
from unlearnbench.training.job import Job
from unlearnbench.training.trainer import Reference


def damaged(model: Any, seed: int = 0, **numbers: float) -> dict[str, torch.Tensor]:
    made = copy.deepcopy(model)
    damage(made, UndoOptions(**{f"undo_{name}": value for name, value in numbers.items()}), seed)
    return dict(made.state_dict())


def test_the_damage_is_a_mixture_and_vectors_stay() -> None:
    model, other = make_model(40), make_model(40)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    half, noise = damaged(model, alpha=0.5, beta=0.2), damaged(model, alpha=1.0, beta=1.0)
    for name, weight in model.named_parameters():
        if weight.dim() < 2:
            assert torch.equal(half[name], weight), "norms"
            continue
        assert torch.allclose(half[name], 0.5 * weight + 0.1 * noise[name], atol=1e-6)
        bound = (6 / sum(weight.shape)) ** 0.5
        drawn = noise[name].numpy()
        assert np.abs(drawn).max() <= bound
        assert drawn.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        away = damaged(other, alpha=1.0, beta=1.0)[name]
        assert torch.equal(away, noise[name]), "alpha 1: nothing of the model is left"
    again = damaged(model, alpha=1.0, beta=1.0)
    assert same(again, noise)
    assert not same(damaged(model, seed=1, alpha=1.0, beta=1.0), noise)
    assert same(damaged(model, alpha=0.0), dict(model.state_dict()))


def test_the_loss_is_half_of_each_mean_divergence() -> None:
    teacher: Any = make_model(40).double().eval()
    model = copy.deepcopy(teacher)
    damage(model, UndoOptions(undo_alpha=0.5), 0)
    rows: list[Any] = [
        {"forget": (Example((0, 5, 9, 30), (0, 5, 9, 30)),), "retain": (Example((0, 8), (0, 8)),)},
        {"forget": (Example((0, 7), (-100, 7)),), "retain": (Example((0, 3, 4), (0, 3, 4)),)},
    ]
    batch = as_batch(collate([(row, sums_of(rows)) for row in rows], pad=1))
    found = Distil(Reference(teacher))(model, batch)
    for role in ("forget", "retain"):
        gaps = []
        for row in rows:
            (e,) = row[role]
            ids, labels = torch.tensor([e.ids]), torch.tensor([e.labels])
            p, q = (
                learned_logits(m(ids).logits.detach(), labels)[0].log_softmax(-1).numpy()
                for m in (model, teacher)
            )
            gaps += (np.exp(q) * (q - p)).sum(axis=1).tolist()
        assert found[role].item() == pytest.approx(np.mean(gaps) / 2, abs=1e-12)
    equal = Distil(Reference(teacher))(copy.deepcopy(teacher), batch)
    assert equal["loss"].item() == 0.0


def test_without_damage_it_is_the_model_and_with_it_the_copy_learns(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    go(job, tmp_path / "none", "undo", knobs={"undo_alpha": 0.0})
    assert same(weights(tiny), weights(tmp_path / "none"))
    found = go(job, tmp_path / "out", "undo", max_steps=8, knobs={"undo_alpha": 0.5})
    assert found.losses[-1].loss < found.losses[0].loss
