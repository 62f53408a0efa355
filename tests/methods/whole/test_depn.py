"""Privacy neurons: completeness of attributions, and what is erased."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import make_model
from tests.training.helpers import go, same, weights
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods.places import hooked, outward
from unlearnbench.methods.rows import Example
from unlearnbench.methods.whole.depn import (
    DepnOptions,
    attribution,
    drawn,
    erase,
    most_voted,
    train,
)
from unlearnbench.training.job import Job

TEXT = Example((0, 5, 9, 30, 7), (-100, -100, 9, 30, 7))


@pytest.fixture
def model() -> Any:
    return make_model(40, num_hidden_layers=2).double().eval()


def chances(model: Any, off: Any = None, at: slice = slice(1, 4)) -> float:
    """The sum of the probabilities of the learned tokens, one layer's neurons off where they are
    predicted.
    """

    def stop(module: Any, given: Any) -> Any:
        x = given[0].clone()
        x[0, at] = 0.0
        return (x,)

    with torch.no_grad(), hooked({off: stop} if off else {}, inputs=True):
        found = model(torch.tensor([TEXT.ids])).logits[0].softmax(-1)
    return sum(float(found[t - 1, TEXT.ids[t]]) for t in (2, 3, 4))


def test_attributions_of_a_layer_add_up_to_what_its_neurons_give(model: Any) -> None:
    """Completeness of integrated gradients: the error of the sum falls as 1 / m."""
    width = 128
    gaps = []
    for m in (5, 20, 80):
        parts = attribution(model, TEXT, DepnOptions(depn_steps=m)).split(width)
        layers = list(outward(model).values())
        gap = [
            float(part.sum()) - (chances(model) - chances(model, layer))
            for part, layer in zip(parts, layers, strict=True)
        ]
        gaps.append(gap)
    for layer in range(2):
        assert abs(gaps[0][layer]) > 0
        assert gaps[1][layer] == pytest.approx(gaps[0][layer] / 4, rel=0.1)
        assert gaps[2][layer] == pytest.approx(gaps[0][layer] / 16, rel=0.1)
    together = attribution(model, TEXT, DepnOptions(depn_path="all"))
    assert together.shape == (2 * width,)
    assert not torch.allclose(together, attribution(model, TEXT, DepnOptions()))


def test_a_column_of_0_is_an_activation_of_0_bit_for_bit(model: Any) -> None:
    layers = outward(model)
    name, layer = list(layers.items())[1]

    def stop(module: Any, given: Any) -> Any:
        x = given[0].clone()
        x[:, :, [3, 77]] = 0.0
        return (x,)

    ids = torch.tensor([TEXT.ids])
    with torch.no_grad(), hooked({layer: stop}, inputs=True):
        expected = model(ids).logits
    erase(layers, [128 + 3, 128 + 77])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected)
    assert not layer.weight[:, [3, 77]].any()
    assert name == "model.layers.1.mlp.down_proj"


def test_the_most_voted_neurons_are_erased_and_ties_go_by_attribution_and_order() -> None:
    texts = [torch.tensor(row).double() for row in ([9, 5, 0, 0.5], [0, 8, 8, 0], [-20, 1, 1, 1])]
    options = DepnOptions(depn_share=0.5)
    assert most_voted(texts, 2, options) == [1, 2], "two and two votes"
    assert most_voted(texts, 3, options) == [1, 2, 3], "by attribution 1.5 before -11"
    same = [torch.ones(5).double()]
    assert most_voted(same, 3, options) == [0, 1, 2]
    for bad in (0.0, float("nan")):
        with pytest.raises(MetricError, match="0 or not finite"):
            most_voted([torch.full((3,), bad).double()], 1, options)


def test_the_control_erases_as_many_by_chance(model: Any) -> None:
    assert len(set(drawn(1000, 50, seed=1))) == 50
    assert drawn(1000, 50, seed=1) == drawn(1000, 50, seed=1) != drawn(1000, 50, seed=2)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    context: Any = SimpleNamespace(model=model, forget=(TEXT,), seed=0)
    train(context, DepnOptions(depn_top=0.0))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "none, unchanged"
    train(context, DepnOptions(depn_choice="random", depn_top=0.1))
    columns = [int((~part.weight.any(dim=0)).sum()) for part in outward(model).values()]
    assert sum(columns) == 26  # of 256, rounded up


def test_erased_columns_stay_0_in_the_checkpoint(job: Job, tiny: Path, tmp_path: Path) -> None:
    go(job, tmp_path / "out", "depn", knobs={"depn_top": 0.05, "depn_steps": 2, "depn_rows": 2})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    parts = outward(model).values()
    erased = sum(int((~part.weight.any(dim=0)).sum()) for part in parts)
    neurons = sum(part.weight.shape[1] for part in parts)
    assert erased == -(-neurons // 20)
    before, after = weights(tiny), weights(tmp_path / "out")
    kept = {n: t for n, t in before.items() if "down_proj" not in n}
    assert same(kept, {n: after[n] for n in kept})
    with pytest.raises(OptionError, match="depn_lora trains nothing"):
        go(job, tmp_path / "none", "depn_lora")
