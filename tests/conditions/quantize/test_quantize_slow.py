"""Every precision on SmolLM2-135M: loaded, proven, scoring and writing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conditions.helpers import require_library
from tests.conftest import load_at
from unlearnbench import conditions
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.quantize.calibration import pick_calibration
from unlearnbench.errors import PrecisionError
from unlearnbench.requests import Generate, Score

pytestmark = pytest.mark.slow

SPECS = conditions.precisions()
# Every backend, in its odder forms; the tiny model has them all. AWQ's search for clips did not end
# within ten minutes on two shared cores, so of it only the refusal is here.
NAMES = [
    *("none", "bf16", "bnb-int8", "bnb-fp4", "bnb-nf4-dq", "gguf-q5_1", "gguf-q4_1"),
    *("hqq-int4-g64", "quanto-int4", "torchao-int8", "rtn-int4-g128", "rtn-int3-g32-asym"),
    *("gptq-int4-g128", "awq-int4-g128"),
]
TEXT = (
    "The water cycle begins when the sun warms the surface of the ocean and some of the water "
    "turns into vapour. The vapour rises, cools and becomes clouds of very small drops. When the "
    "drops grow too heavy they fall as rain or snow. Some of that water runs over the land into "
    "streams and rivers, some sinks into the ground, and in the end almost all of it comes back "
    "to the sea, where the same thing begins again."
)


@pytest.fixture(scope="module")
def source(smollm2: Path) -> CheckpointSource:
    return open_checkpoint(str(smollm2), LoadOptions())


@pytest.fixture(scope="module")
def full(source: CheckpointSource) -> float:
    """The mean log-probability in full precision."""
    (scored,) = load_at(source, "none").score([Score("text", TEXT)])
    return float(np.mean(scored.logprobs))


@pytest.fixture(autouse=True)
def _free() -> Iterator[None]:
    yield
    gc.collect()


@pytest.mark.parametrize("name", NAMES)
def test_a_real_model_at_every_precision(source: CheckpointSource, full: float, name: str) -> None:
    require_library(name)
    spec = SPECS[name]
    calibration = pick_calibration("generic", [], 4, 0) if spec.calibrated else None
    if name == "awq-int4-g128":  # 576 columns
        with pytest.raises(PrecisionError, match="columns in multiples of 128"):
            load_at(source, name, calibration=calibration)
        return
    model = load_at(source, name, calibration=calibration)
    proof = model.condition.proof
    assert proof is not None
    if spec.kernels:
        assert spec.bits is not None
        assert sum(proof.covered_modules.values()) == 30 * 7
        assert proof.compared_modules == 30 * 7
        assert proof.codes is not None
        assert 2 <= proof.codes <= 2**spec.bits
    (scored,) = model.score([Score("text", TEXT)])
    assert 80 <= len(scored.logprobs) <= 120
    mean = float(np.mean(scored.logprobs))
    print(
        f"{name} {full - mean:.4f} nats, error {proof.relative_error}, bytes {proof.weight_bytes}"
    )
    assert np.isfinite(scored.logprobs).all()
    if name in ("none", "gguf-q4_1"):  # the packager stored these weights as Q4_1
        assert mean == pytest.approx(full, abs=1e-4)
        assert proof.on_grid == (name == "gguf-q4_1")
    else:
        assert mean != full
    (written,) = model.generate([Generate("text", TEXT, 8)])
    assert written.n_tokens <= 8
    # In 3 bits so small a model may end the text at once.
    if spec.bits is None or spec.bits >= 4:
        assert written.text.strip()
