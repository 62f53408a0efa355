from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conditions.helpers import short_calibration
from tests.conftest import MakeCheckpoint, load_at
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition, wanda
from unlearnbench.errors import NotInForceError, PrecisionError

NAMES = ["prune-wanda-12.5", "prune-wanda-50", "prune-wanda-90", "prune-wanda-2of4"]


@pytest.fixture(scope="module")
def source(tiny: Path) -> CheckpointSource:
    return open_checkpoint(str(tiny), LoadOptions())


@pytest.fixture(scope="module")
def inputs(tiny: Path, source: CheckpointSource) -> dict[str, NDArray[np.float64]]:
    """What each linear layer of transformers' own model is given, (tokens, inputs)."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny).eval()
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if name.endswith("_proj"):
            rows = seen.setdefault(name, [])
            module.register_forward_hook(lambda _, given, __, rows=rows: rows.append(given[0][0]))
    for text in short_calibration().texts:
        with torch.no_grad():
            model(torch.tensor([source.tokenizer(text)["input_ids"][:512]]))
    return {name: torch.cat(rows).double().numpy() for name, rows in seen.items()}


def reference(weight: NDArray[np.float64], given: NDArray[np.float64], k: int, size: int) -> Any:
    """Row after row, group after group, by sorting."""
    norms, pruned = np.sqrt((given**2).mean(axis=0)), weight.copy()
    for row in pruned:
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            order = np.argsort(np.abs(row[part]) * norms[part], kind="stable")
            row[start + order[:k]] = 0
    return pruned


@pytest.mark.parametrize("name", NAMES)
def test_wanda_is_the_formula(
    source: CheckpointSource, inputs: dict[str, NDArray[np.float64]], name: str
) -> None:
    model = load_at(source, name, calibration=short_calibration())
    before, zeros = source.state_dict(), []
    for key, weight in model.network.state_dict().items():
        module, own = key.removesuffix(".weight"), before[key].double().numpy()
        if module in inputs:
            n = own.shape[1]
            share = {"12.5": 0.125, "50": 0.5, "90": 0.9}.get(name.rpartition("-")[2])
            k, size = (2, 4) if share is None else (round(share * n), n)
            own = reference(own, inputs[module], k, size)
            found = (weight == 0).numpy().reshape(-1, size).sum(axis=1)
            assert (found == k).all(), module
            zeros.append(k / size)
        assert np.array_equal(weight.double().numpy(), own), key
    proof = model.condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["zero_share"] == pytest.approx(np.mean(zeros), abs=0.01)
    assert model.condition.options.calibration == short_calibration().data
    assert len(zeros) == proof.compared_modules == 14


def test_of_equal_scores_the_first_go() -> None:
    spec = find_condition("prune-wanda-50")
    weight = torch.tensor([[1.0, -2.0, 2.0, 4.0, 0.0]])
    means = torch.tensor([16.0, 4.0, 4.0, 1.0, 9.0], dtype=torch.float64)
    assert wanda.prune_rows(spec, weight, means).tolist() == [[0.0, -2.0, 2.0, 4.0, 0.0]]
    assert weight[0, 0] == 1, "the checkpoint's weights are not changed"


def test_the_name() -> None:
    assert find_condition("prune-wanda-2:4").name == "prune-wanda-2of4"
    assert find_condition("prune-wanda-50.0").name == "prune-wanda-50"
    assert find_condition("prune-wanda-2:4+nf4").name == "prune-wanda-2of4+bnb-nf4"
    for wrong in ("prune-wanda-0", "prune-wanda-100", "prune-wanda-200"):
        with pytest.raises(PrecisionError, match="above 0 and below 100"):
            find_condition(wrong)
    with pytest.raises(PrecisionError, match="unknown condition"):
        find_condition("prune-wanda-3:4")


def test_what_wanda_cannot_do_is_refused(
    source: CheckpointSource, make_checkpoint: MakeCheckpoint
) -> None:
    with pytest.raises(PrecisionError, match="needs calibration texts; give --calibration"):
        load_at(source, "prune-wanda-50")
    odd = open_checkpoint(str(make_checkpoint("odd", intermediate_size=90)), LoadOptions())
    with pytest.raises(PrecisionError, match=r"down_proj has 90 inputs, no groups of 4"):
        load_at(odd, "prune-wanda-2of4", calibration=short_calibration())


def test_what_is_not_pruned_as_asked_is_refused(
    source: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune, half = wanda.prune_rows, find_condition("prune-wanda-25")

    def whole_matrix(spec: Any, weight: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
        scores = wanda.score(weight, means)
        return weight.masked_fill(scores <= scores.median(), 0)

    for wrong in (
        lambda spec, weight, means: weight,
        lambda spec, weight, means: prune(half, weight, means),
        lambda spec, weight, means: prune(spec, weight, torch.ones_like(means)),  # by magnitude
        lambda spec, weight, means: 2 * prune(spec, weight, means),
        whole_matrix,
    ):
        monkeypatch.setattr(wanda, "prune_rows", wrong)
        with pytest.raises(NotInForceError, match=r"prune-wanda-50: module model\.layers"):
            load_at(source, "prune-wanda-50", calibration=short_calibration())


def test_a_chain_after_wanda_keeps_its_zeros(source: CheckpointSource) -> None:
    model = load_at(source, "prune-wanda-2of4+rtn-int4", calibration=short_calibration())
    weight = model.network.state_dict()["model.layers.0.mlp.up_proj.weight"]
    assert bool(((weight == 0).reshape(-1, 4).sum(1) >= 2).all())
    first = model.condition.first
    assert first is not None
    assert first.options.calibration is not None
    assert model.condition.options.calibration is None
