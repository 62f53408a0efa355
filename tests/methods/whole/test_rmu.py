"""RMU's loss and gradient against plain loops in double precision, row by row without padding."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import make_model
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.methods.whole.rmu import Steering, default_layer, direction
from unlearnbench.training.batches import Rows, as_batch, collate, sums_of
from unlearnbench.training.trainer import Reference

LAYER, WEIGHT, SCALE = 1, 3.0, 6.5
FORGET = [((0, 5, 9, 30, 7), (0, 5, 9, 30, 7)), ((0, 8, 2), (IGNORED, IGNORED, 2))]
RETAIN = [((0, 11, 12), (0, 11, 12)), ((0, 3, 4, 6, 20, 21), (IGNORED, 3, 4, 6, 20, 21))]
Row = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def models() -> tuple[Any, Any]:
    """A model under training and the target that it started from, in double precision."""
    target: Any = make_model(40, num_hidden_layers=3).double().eval()
    model = copy.deepcopy(target)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return model, target


def hidden(model: Any, ids: tuple[int, ...]) -> NDArray[np.float64]:
    """What the layer puts out, (tokens, hidden)."""
    seen: list[Any] = []
    hook = model.model.layers[LAYER].register_forward_hook(lambda *given: seen.append(given[2]))
    with torch.no_grad():
        model(torch.tensor([ids]))
    hook.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    found: NDArray[np.float64] = output.reshape(len(ids), -1).numpy()
    return found


def plain(model: Any, target: Any) -> tuple[float, float]:
    """Forget and weighted retain term: means over texts of means over their learned tokens."""
    goal = SCALE * direction(64, 0).double().numpy()

    def mean(rows: list[Row], distant: Any) -> float:
        means = []
        for ids, labels in rows:
            places = [t for t, label in enumerate(labels) if t and label >= 0]
            squares = [sum(float(x) ** 2 for x in distant(ids, t)) for t in places]
            means.append(sum(squares) / len(squares))
        return sum(means) / len(means)

    forget = mean(FORGET, lambda ids, t: hidden(model, ids)[t] - goal)
    retain = mean(RETAIN, lambda ids, t: hidden(model, ids)[t] - hidden(target, ids)[t])
    return forget, WEIGHT * retain


def loss(model: Any, target: Any) -> dict[str, torch.Tensor]:
    rows: list[Rows] = [
        {"forget": (Example(*first),), "retain": (Example(*second),)}
        for first, second in zip(FORGET, RETAIN, strict=True)
    ]
    batch = as_batch(collate([(row, sums_of(rows)) for row in rows], pad=1))
    goal = SCALE * direction(64, 0).double()
    return Steering(LAYER, goal, WEIGHT, Reference(target))(model, batch)


def test_the_loss_is_the_papers(models: tuple[Any, Any]) -> None:
    found, (forget, retain) = loss(*models), plain(*models)
    assert found["forget"].item() == pytest.approx(forget, rel=1e-8)
    assert found["retain"].item() == pytest.approx(retain, rel=1e-8)
    assert found["loss"].item() == pytest.approx(forget + retain, rel=1e-8)


def test_the_gradient_is_the_papers(models: tuple[Any, Any]) -> None:
    """At the layer's output 2 (h - goal) / (texts x tokens) where one is learned, 0 elsewhere."""
    model, target = models
    seen: list[Any] = []
    hook = model.model.layers[LAYER].register_forward_hook(lambda *given: seen.append(given[2]))
    terms = loss(model, target)
    hook.remove()
    output = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    (found,) = torch.autograd.grad(terms["loss"], output)
    expected = np.zeros(found.shape)
    goal = SCALE * direction(64, 0).double().numpy()
    for at, (ids, labels) in enumerate([*FORGET, *RETAIN]):
        rows = FORGET if at < len(FORGET) else RETAIN
        weight = 2 / len(rows) / sum(label >= 0 for label in labels[1:])
        away = goal if rows is FORGET else hidden(target, ids)
        distant = weight * (1 if rows is FORGET else WEIGHT) * (hidden(model, ids) - away)
        for t in range(1, len(ids)):
            expected[at, t] = distant[t] * (labels[t] >= 0)
    assert np.abs(found.numpy() - expected).max() < 1e-8
    assert not found[:, 0].any(), "the first token is never predicted"


def test_the_direction_is_a_unit_vector_fixed_by_the_seed() -> None:
    first = direction(64, 3)
    assert float(first.norm()) == pytest.approx(1.0, abs=1e-6)
    assert bool((first >= 0).all())
    assert torch.equal(first, direction(64, 3))
    assert not torch.equal(first, direction(64, 4))


@pytest.mark.parametrize(("layers", "layer"), [(32, 7), (1, 0), (2, 0), (30, 7), (80, 18)])
def test_the_layer_scales_with_depth(layers: int, layer: int) -> None:
    assert default_layer(layers) == layer
