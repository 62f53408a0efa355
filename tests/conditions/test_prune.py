from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.conftest import Toy, load_at
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import prune as pruning
from unlearnbench.conditions.prune import prune
from unlearnbench.errors import NotInForceError


def reference(weight: NDArray[np.float32], share: str) -> NDArray[np.float32]:
    """By sorting: the k smallest magnitudes, of equal ones the first."""
    from decimal import ROUND_HALF_EVEN, Decimal

    k = int((Decimal(share) * weight.size / 100).to_integral_value(ROUND_HALF_EVEN))
    flat = weight.ravel().copy()
    flat[np.argsort(np.abs(flat), kind="stable")[:k]] = 0
    found: NDArray[np.float32] = flat.reshape(weight.shape)
    return found


@given(
    rows=st.integers(1, 7),
    columns=st.integers(1, 9),
    share=st.sampled_from(["0.001", "10", "12.5", "30", "50", "66.6", "99.999"]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_pruning_is_that_of_a_sort(rows: int, columns: int, share: str, seed: int) -> None:
    # Few distinct values, so that most are tied.
    random = np.random.default_rng(seed)
    weight = random.integers(-3, 4, (rows, columns)).astype(np.float32)
    found = prune(torch.from_numpy(weight), float(share)).numpy()
    np.testing.assert_array_equal(found, reference(weight, share))


def test_of_weights_of_one_magnitude_the_first_go() -> None:
    weight = torch.tensor([[1.0, -1.0, 2.0], [1.0, -3.0, 1.0]])
    expected = [[0.0, 0.0, 2.0], [0.0, -3.0, 1.0]]
    assert prune(weight, 50).tolist() == expected
    assert weight[0, 0] == 1, "the checkpoint's weights are not changed"


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("share", ["12.5", "30", "90"])
def test_what_is_in_force(tiny: Path, share: str, dtype: str) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    model = load_at(source, f"prune-magnitude-{share}", dtype)
    before = source.state_dict()
    covered = 0
    for name, weight in model.network.state_dict().items():
        exact = before[name].float().numpy()
        if name.endswith("_proj.weight"):
            exact = reference(exact, share)
            covered += exact.size
        expected = torch.from_numpy(exact).to(weight.dtype)
        assert torch.equal(weight, expected), name
    proof = model.condition.proof
    assert proof is not None
    assert proof.covered_weights == covered
    assert proof.compared_modules == sum(proof.covered_modules.values()) == 14
    assert proof.figures is not None
    assert list(proof.figures) == ["zero_share"]
    assert proof.figures["zero_share"] == pytest.approx(float(share) / 100, abs=1e-3)
    assert proof.codes is None
    assert {"lm_head.weight", "model.embed_tokens.weight"} & set(proof.uncovered)


def test_what_is_not_pruned_as_asked_is_refused(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())

    def largest(weight: torch.Tensor, share: float) -> torch.Tensor:
        return torch.where(weight.abs() >= weight.abs().quantile(1 - share / 100), 0, weight)

    for wrong in (
        lambda weight, share: weight,
        lambda weight, share: prune(weight, share / 2),
        lambda weight, share: 2 * prune(weight, share),
        largest,
    ):
        monkeypatch.setattr(pruning, "prune", wrong)
        with pytest.raises(NotInForceError, match=r"prune-magnitude-25: module model\.layers"):
            load_at(source, "prune-magnitude-25")


def test_pruning_twice_changes_nothing(tiny: Path, tmp_path: Path) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    once = load_at(source, "prune-magnitude-40")
    once.network.save_pretrained(tmp_path)
    source.tokenizer.save_pretrained(tmp_path)
    twice = load_at(open_checkpoint(str(tmp_path), LoadOptions()), "prune-magnitude-40")
    proof = twice.condition.proof
    assert proof is not None
    assert proof.on_grid
    assert proof.changed_share == 0


def test_a_pruned_run_is_not_computed_again_and_another_share_lies_beside_it(
    tiny: Path, toy: Toy
) -> None:
    names = ["none", "prune-magnitude-30", "prune-magnitude-60"]
    first = evaluate(str(tiny), "toy", names, **toy.options)
    files = sorted(toy.out.rglob("*.json*"))
    content = [file.read_bytes() for file in files]
    assert evaluate(str(tiny), "toy", names, **toy.options) == first
    assert [file.read_bytes() for file in files] == content
    assert [r.condition.kind for r in first] == ["stored", "pruned", "pruned"]
    assert [r.condition.options.further.get("share") for r in first] == [None, 30.0, 60.0]
