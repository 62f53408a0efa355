"""Masks of whole feed-forward parts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import make_model
from tests.training.helpers import go, weights
from unlearnbench.errors import OptionError
from unlearnbench.methods.masks.mlp_early import EarlyOptions, choose
from unlearnbench.training.job import Job


@pytest.mark.parametrize(("layers", "first", "last"), [(33, 2, 8), (2, 0, 0), (1, 0, 0)])
def test_the_blocks_between_two_depths_are_chosen(layers: int, first: int, last: int) -> None:
    context: Any = SimpleNamespace(model=make_model(40, num_hidden_layers=layers))
    masks = choose(context, EarlyOptions())
    chosen = {name for name, mask in masks.items() if mask.all()}
    assert all(bool(mask.all()) or not bool(mask.any()) for mask in masks.values())
    parts = ("gate_proj", "up_proj", "down_proj")
    blocks = range(first, last + 1)
    assert chosen == {f"model.layers.{n}.mlp.{part}.weight" for n in blocks for part in parts}
    assert len(masks) == 7 * layers


def test_everything_else_stays_bit_for_bit(job: Job, tiny: Path, tmp_path: Path) -> None:
    go(job, tmp_path / "out", "unlikelihood_gdr_mlp_early", lr=1e-2)
    before, after = weights(tiny), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    parts = ("gate_proj", "up_proj", "down_proj")
    assert changed == {f"model.layers.0.mlp.{part}.weight" for part in parts}
    with pytest.raises(OptionError, match=r"--mlp-from 0.5 is beyond --mlp-to 0.25"):
        go(job, tmp_path / "none", "ga_gdr_mlp_early", knobs={"mlp_from": 0.5})
