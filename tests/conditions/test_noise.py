from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Toy, load_at
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import noise as noising
from unlearnbench.conditions.noise import add_noise
from unlearnbench.errors import NotInForceError


def test_noise_has_the_level_asked_for_and_no_mean() -> None:
    weight = torch.from_numpy(np.random.default_rng(0).normal(0.3, 0.02, (400, 500)))
    noise = (add_noise(weight, 0.05, 0, "a") - weight).double().numpy()
    deviation = float(np.std(weight.numpy()))
    assert np.std(noise) / deviation == pytest.approx(0.05, rel=0.01)
    assert abs(np.mean(noise)) < 5 * 0.05 * deviation / noise.size**0.5
    ordered = np.sort(noise.ravel() / np.std(noise))
    # The quantiles of a normal distribution.
    for share, quantile in ((0.05, -1.645), (0.5, 0.0), (0.95, 1.645), (0.999, 3.09)):
        assert ordered[int(share * ordered.size)] == pytest.approx(quantile, abs=0.1)


def test_noise_depends_on_seed_and_module_and_nothing_else() -> None:
    weight = torch.ones(8, 8) * torch.arange(8)
    first = add_noise(weight, 0.1, 0, "a")
    assert torch.equal(first, add_noise(weight, 0.1, 0, "a"))
    assert torch.equal(first, add_noise(weight.bfloat16(), 0.1, 0, "a"))
    assert not torch.equal(first, add_noise(weight, 0.1, 1, "a"))
    assert not torch.equal(first, add_noise(weight, 0.1, 0, "b"))
    half = add_noise(weight, 0.05, 0, "a")
    torch.testing.assert_close((first - weight) / 2, half - weight)


def test_the_generator_is_the_one_that_is_named() -> None:
    from hashlib import sha256

    digest = sha256(b"a").digest()
    words = [7, *(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4))]
    drawn = np.random.default_rng(np.random.SeedSequence(words))  # PCG64
    weight = torch.eye(4)
    expected = weight.numpy() + 0.5 * np.std(weight.numpy()) * drawn.standard_normal(
        (4, 4), dtype=np.float32
    )
    np.testing.assert_allclose(add_noise(weight, 0.5, 7, "a").numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["noise-5", "noise-20-seed3"])
def test_what_is_in_force(tiny: Path, name: str) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    model, again = load_at(source, name), load_at(source, name)
    before = source.state_dict()
    for key, weight in model.network.state_dict().items():
        assert torch.equal(weight, again.network.state_dict()[key])
        assert torch.equal(weight, before[key]) == (not key.endswith("_proj.weight")), key
    level, _, seed = name.removeprefix("noise-").partition("-seed")
    further = model.condition.options.further
    assert (further["level"], further["seed"]) == (float(level), int(seed or 0))
    assert "PCG64" in str(further["generator"])
    proof = model.condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["noise_level"] == pytest.approx(float(level) / 100, rel=0.02)
    assert abs(proof.figures["noise_mean"]) < 0.01
    assert proof.compared_modules == 14
    assert proof.changed_share == pytest.approx(1, abs=1e-3)


def test_noise_that_the_dtype_rounds_away_is_refused(tiny: Path) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    with pytest.raises(NotInForceError, match=r"noise-0\.01: .* use --dtype fp32"):
        load_at(source, "noise-0.01", "bf16")
    assert load_at(source, "noise-0.01").condition.proof is not None


def test_other_noise_than_asked_for_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    for wrong in (
        lambda weight, *rest: weight,
        lambda weight, level, *rest: add_noise(weight, 2 * level, *rest),
        lambda weight, level, *rest: add_noise(weight, level, *rest) + level * weight.std(),
    ):
        monkeypatch.setattr(noising, "add_noise", wrong)
        with pytest.raises(NotInForceError, match="the noise in force in module"):
            load_at(source, "noise-5")


def test_seeds_lie_beside_each_other(tiny: Path, toy: Toy) -> None:
    names = ["noise-30", "noise-30-seed1"]
    first = evaluate(str(tiny), "toy_privleak", names, **toy.options)
    assert evaluate(str(tiny), "toy_privleak", names, **toy.options) == first
    assert [r.condition.kind for r in first] == ["noised", "noised"]
    values = [r.tasks["toy_privleak"].records_sha256 for r in first]
    assert values[0] != values[1]
