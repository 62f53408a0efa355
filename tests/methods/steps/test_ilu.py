"""The invariance penalty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.methods.forget.helpers import drawn, part
from tests.methods.steps.toys import toy_step
from tests.training.helpers import go, same, weights
from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import token_logprobs
from unlearnbench.methods.steps import ilu
from unlearnbench.training.job import Job


def test_the_slope_is_that_of_the_loss_with_a_factor_of_all_logits() -> None:
    logits = drawn()
    given = part(logits)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    scaled = -token_logprobs(scale * logits, given.labels).sum() / given.all_tokens
    (expected,) = torch.autograd.grad(scaled, scale)
    assert ilu.slope(given).item() == pytest.approx(expected.item(), abs=1e-12)


def test_it_is_0_for_a_model_that_is_sure_and_right_and_for_one_that_says_nothing() -> None:
    given = part(drawn())
    assert ilu.slope(replace(given, logits=given.logits * 0)).item() == 0.0
    sure = torch.zeros_like(given.logits)
    sure[:, :-1].scatter_(2, given.labels[:, 1:, None].clamp(min=0), 900.0)
    assert ilu.slope(replace(given, logits=sure)).item() == pytest.approx(0.0, abs=1e-12)


def test_the_gradient_of_the_square() -> None:
    step = toy_step([1.0, 2.0], lambda w: w[0], other=lambda w: 3 * w[0] - w[1] ** 2)
    found = ilu.gradient(step, ilu.IluOptions(ilu_weight=0.5))
    assert found.terms == {"forget": 1.0, "retain": 0.0, "auxiliary": 0.5}  # 0.5 x (3 - 4)^2
    assert found.of["w"].tolist() == [1.0 + 0.5 * 2 * -1 * 3, 0.5 * 2 * -1 * -4]


def test_weight_0_is_the_method_itself(job: Job, tmp_path: Path) -> None:
    """The third set makes no batch of another width here: the weights are the same to the bit."""
    other = replace(job, auxiliary=job.retain)
    plain = go(job, tmp_path / "plain", "ga_gdr", max_length=24)
    knobs = {"ilu_weight": 0.0}
    zero = go(other, tmp_path / "zero", "ga_gdr_ilu", knobs=knobs, max_length=24)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "zero"))
    assert zero.losses == plain.losses
    found = go(other, tmp_path / "out", "ga_gdr_ilu", max_length=24)
    parts = go(other, tmp_path / "parts", "ga_gdr_ilu", max_length=24, micro_batch_size=1)
    for first, second in zip(found.losses, parts.losses, strict=True):
        assert first.auxiliary is not None
        assert first.auxiliary > 0
        assert second.auxiliary == pytest.approx(first.auxiliary, rel=1e-3)
        assert second.loss == pytest.approx(first.loss, rel=1e-3)
    with pytest.raises(OptionError, match="learns from a set of auxiliary texts"):
        go(job, tmp_path / "none", "ga_gdr_ilu")
