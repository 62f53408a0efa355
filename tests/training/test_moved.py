"""What the record of a training says of its change after rounding, against numpy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.helpers import go, weights
from unlearnbench.training.job import Job


def int4(weight: Any) -> tuple[Any, Any]:
    """Codes and values of a matrix, one grid a row."""
    step = np.abs(weight).max(axis=1, keepdims=True) / np.float32(7)
    codes = np.round(weight / step)
    return codes, codes.astype(np.float64) * step


def test_codes_and_sizes_are_those_of_the_two_checkpoints(
    job: Job, tiny: Path, tmp_path: Path
) -> None:
    found = go(job, tmp_path / "out", "ga_gdr", lr=3e-3)
    assert found.codes is not None
    assert [r.precision for r in found.codes] == ["rtn-int8", "rtn-int4", "bnb-nf4", "bnb-fp4"]
    record = found.codes[1]
    before, after = weights(tiny), weights(tmp_path / "out")
    sums = np.zeros(4)
    for module in ("mlp.up_proj", "self_attn.q_proj", None):
        if module is None:
            names = [name for name in before if "proj" in name]
        else:
            names = [f"model.layers.{n}.{module}.weight" for n in range(2)]
        sums[:] = 0
        for name in names:
            u, t = after[name].numpy(), before[name].numpy()
            (cu, qu), (ct, qt) = int4(u), int4(t)
            d = u.astype(np.float64) - t
            sums += [(cu != ct).sum(), u.size, ((qu - qt) ** 2).sum(), (d**2).sum()]
        part = record if module is None else record.modules[module]
        assert part.weights == sums[1]
        assert part.changed == pytest.approx(sums[0] / sums[1], abs=2e-4)
        assert part.size == pytest.approx((sums[2] / sums[3]) ** 0.5, rel=5e-3)
    assert 0 < record.changed < found.codes[0].changed < 1


def test_where_nothing_changes_there_is_no_size(job: Job, tmp_path: Path) -> None:
    found = go(job, tmp_path / "out", "tv", knobs={"alpha": 0.0})
    assert found.codes is not None
    assert {(r.changed, r.size) for r in found.codes} == {(0.0, None)}
    assert go(job, tmp_path / "two", "whp").codes is None
    assert go(job, tmp_path / "kept", "ga", lora_rank=2, keep_adapter=True).codes is None
    record = json.loads((tmp_path / "out/unlearning.json").read_bytes())
    assert record["codes"][0]["modules"]["mlp.down_proj"]["changed"] == 0.0
