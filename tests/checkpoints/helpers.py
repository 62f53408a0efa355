"""What the tests of checkpoints share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import CORPUS, load_at
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Sampling, Score

PROMPTS = [CORPUS[n][: 20 + 5 * n] for n in range(4)]


UP = "model.layers.1.mlp.up_proj.weight"


def load(path: Path, precision: str = "none", dtype: str = "fp32") -> HFModel:
    source = open_checkpoint(str(path), LoadOptions())
    return load_at(source, precision, dtype)


def texts(model: HFModel, sampling: Sampling | None = None) -> list[str]:
    requests = [Generate(str(i), p, 12, (), sampling) for i, p in enumerate(PROMPTS)]
    return [a.text for a in sorted(model.generate(requests), key=lambda a: a.id)]


def logprobs(model: HFModel) -> np.ndarray[Any, Any]:
    scored = sorted(model.score([Score(str(i), p) for i, p in enumerate(PROMPTS)]), key=by_id)
    return np.concatenate([s.logprobs for s in scored])


def by_id(answer: Any) -> str:
    return str(answer.id)


def edit_json(path: Path, **changes: object) -> None:
    """Set keys of a JSON object; None removes a key."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})
