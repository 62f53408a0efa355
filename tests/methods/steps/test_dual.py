"""The multiplier of primal-dual unlearning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import go
from unlearnbench.methods.base import Gradient
from unlearnbench.methods.steps import dual
from unlearnbench.training.job import Job


class Step:
    """A step whose retain loss is what the list says."""

    def __init__(self, retains: list[float], whole: float = 1.0) -> None:
        self.state: dict[str, float] = {}
        self.whole = whole
        self._retains = retains

    def forget(self) -> Gradient:
        return Gradient({"forget": 2.0}, {"w": 3.0})  # type: ignore[dict-item]

    def retain(self) -> Gradient:
        return Gradient({"retain": self._retains.pop(0)}, {"w": 1.0})  # type: ignore[dict-item]


def test_the_multiplier_follows_the_retain_loss_and_never_falls_below_0() -> None:
    """By hand: 1, then 1 + 2 (0.8 - 0.3) = 2, then 2 + 2 (0.1 - 0.3) = 1.6, then 0."""
    step: Any = Step([0.8, 0.1, -3.0, 0.3])
    options = dual.DualOptions(dual_start=1.0, dual_rate=2.0, dual_limit=0.3)
    found = [dual.gradient(step, options) for _ in range(4)]
    assert [g.of["w"] for g in found] == pytest.approx([3 + m for m in (1.0, 2.0, 1.6, 0.0)])
    assert [g.terms["retain"] for g in found] == pytest.approx([0.8, 0.2, -4.8, 0.0])
    assert step.state["multiplier"] == 0.0


def test_the_limit_is_on_the_mean_over_places(job: Job, tmp_path: Path) -> None:
    """Terms that are three times as large, because they were taken at three places, move it alike;
    and at rounded weights that are the weights, so does a whole training.
    """
    options = dual.DualOptions(dual_start=1.0, dual_rate=2.0, dual_limit=0.3)
    steps: list[Any] = [Step([0.8]), Step([2.4], 3.0)]
    for step in steps:
        dual.gradient(step, options)
    assert steps[1].state["multiplier"] == pytest.approx(steps[0].state["multiplier"])
    seen: list[tuple[float, float]] = []
    gradient = dual.gradient

    def watch(step: Any, options: Any) -> Gradient:
        found = gradient(step, options)
        seen.append((step.whole, step.state["multiplier"]))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dual, "gradient", watch)
        patch.setattr("unlearnbench.training.rounded._values", lambda spec, weight: weight)
        for survive in (None, "rtn-int8,rtn-int4"):
            go(job, tmp_path / str(survive), "pdu_gdr_dual", survive=survive, max_steps=1)
    (one, plain), (three, survived) = seen
    assert (one, three) == (1.0, 3.0)
    assert survived == pytest.approx(plain, rel=1e-5)


def test_a_multiplier_that_stays_is_the_retain_weight(job: Job, tmp_path: Path) -> None:
    fixed = go(job, tmp_path / "fixed", "pdu_gdr", knobs={"retain_weight": 7.0})
    knobs = {"dual_start": 7.0, "dual_rate": 0.0}
    found = go(job, tmp_path / "out", "pdu_gdr_dual", knobs=knobs)
    for ours, theirs in zip(found.losses, fixed.losses, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    moving = go(job, tmp_path / "moving", "pdu_gdr_dual", knobs={**knobs, "dual_rate": 5.0})
    assert moving.losses[0].loss == found.losses[0].loss
    assert moving.losses[1].retain != pytest.approx(found.losses[1].retain, rel=1e-2)
