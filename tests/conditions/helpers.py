"""What the tests of precisions share: short calibration texts, answers, and weights in force."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import CORPUS, load_at
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.base import Calibration
from unlearnbench.conditions.quantize.calibration import pick_calibration
from unlearnbench.requests import Generate, Score

if TYPE_CHECKING:
    from unlearnbench.checkpoints.checkpoint import CheckpointSource
    from unlearnbench.models.hf import HFModel

TEXTS = [CORPUS[n][: 20 + 6 * n] for n in range(8)]
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
UP = "model.layers.0.mlp.up_proj"

Floats = NDArray[np.float32]
Answers = tuple[dict[str, str], dict[str, NDArray[Any]]]


def short_calibration() -> Calibration:
    """Four short texts, so that GPTQ and AWQ take a second or two on a tiny model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "short.jsonl"
        rows = [json.dumps({"text": text.strip() * 2}) for text in CORPUS[20:24]]
        path.write_text("\n".join(rows), encoding="utf-8")
        return pick_calibration(str(path), [], 4, 0)


@contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    """Work in ``folder`` for a while: GPTQModel's AWQ writes a ``logs`` folder where it stands."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def load(source: CheckpointSource, name: str, kernel: str = "auto", dtype: str = "fp32") -> HFModel:
    """``source`` at a precision, with short calibration texts where it needs some, in batches of
    eight.
    """
    calibration = short_calibration() if find_condition(name).calibrated else None
    return load_at(source, name, dtype, 8, kernel=kernel, calibration=calibration)


def answers(model: HFModel) -> Answers:
    """Generations of ten tokens and per-token log-probabilities for eight texts."""
    texts = {a.id: a.text for a in model.generate([Generate(t, t, 10) for t in TEXTS])}
    return texts, scores(model)


def scores(model: HFModel) -> dict[str, NDArray[Any]]:
    """Per-token log-probabilities of eight texts."""
    return {s.id: np.asarray(s.logprobs) for s in model.score([Score(t, t) for t in TEXTS])}


def largest_difference(one: dict[str, NDArray[Any]], other: dict[str, NDArray[Any]]) -> float:
    """Between two sets of log-probabilities."""
    return max(float(np.abs(one[t] - other[t]).max()) for t in TEXTS)


def module_of(model: HFModel, name: str) -> Any:
    """A module inside a loaded model."""
    return model.network.get_submodule(name)


def in_force(source: CheckpointSource, name: str, key: str = UP) -> Floats:
    """The weight in force in one module, read from the model with dense weights."""
    weight = module_of(load(source, name, "dequantized"), key).weight
    found: Floats = weight.detach().float().numpy()
    return found


def own(source: CheckpointSource, key: str = UP) -> Floats:
    """The checkpoint's own weight of one module."""
    found: Floats = source.state_dict()[f"{key}.weight"].float().numpy()
    return found


def error(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """RMS of the difference, relative to ``exact``."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


# pip's extra -> what it brings.
EXTRAS = {
    **{"ggml": "libggml", "gptq": "gptqmodel", "hqq": "hqq", "quanto": "optimum.quanto"},
    **{"torchao": "torchao", "compressed-tensors": "compressed_tensors"},
    **{"auto-round": "auto_round"},
}


def require_library(name: str) -> None:
    """Skip a test where a precision's library is missing."""
    extra = find_condition(name).extra
    if extra is not None:
        pytest.importorskip(EXTRAS[extra], reason=f"pip install 'unlearnbench[{extra}]'")
