from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unlearnbench.checkpoints.origin import FILE, read_origin
from unlearnbench.errors import CheckpointError

SHA = "0" * 64


def record(**changes: Any) -> dict[str, Any]:
    content = {
        "format_version": 1,
        "kind": "unlearn",
        "method": "npo",
        "knobs": {"beta": 0.1},
        "options": {"lr": 1e-05, "seed": 3, "weights_dtype": "fp32", "max_steps": 9},
        "processes": 1,
        "target": {
            "path": "target",
            "format": "safetensors",
            "weights_sha256": SHA,
            "tokenizer_sha256": SHA,
        },
        "data": [{"role": "forget", "source": "forget.jsonl", "rows": 4, "sha256": SHA}],
        "sequences": {"forget": 4},
        "max_length": 64,
        "losses": [{"stage": "npo", "step": 8, "loss": 0.5, "lr": 1e-05}],
        "packages": {"torch": "2"},
        "unlearnbench": "1",
        "source_sha256": SHA,
        "seconds": 1.5,
        "created": "2026-11-28T00:00:00Z",
    }
    return content | changes


def test_what_results_say_of_a_training(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(json.dumps(record()))
    assert read_origin(tmp_path) == {
        "method": "npo",
        "target_sha256": SHA,
        "lr": "1e-05",
        "seed": "3",
        "weights_dtype": "fp32",
        "steps": "8",
        "beta": "0.1",
    }


def test_of_a_folder_without_a_record_nothing_is_known(tmp_path: Path) -> None:
    assert read_origin(tmp_path) == {}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "\x1b[31m"}, "method"),
        ({"processes": 0}, "processes"),
        ({"more": 1}, "more"),
        ({"format_version": 2}, "format_version"),
        ({"losses": [{"stage": "npo", "step": 0, "loss": 0.5, "lr": 1.0}]}, "losses.0.step"),
        ({"losses": [{"stage": "npo", "step": 1, "loss": "NaN", "lr": 1.0}]}, "losses.0.loss"),
        ({"options": {"lr": -1.0, "seed": 0, "weights_dtype": "fp32"}}, "options.lr"),
        ({"options": {"lr": 1.0, "seed": 2**40, "weights_dtype": "fp32"}}, "options.seed"),
        ({"options": {"lr": 1.0, "seed": 0, "weights_dtype": "evil"}}, "options.weights_dtype"),
        ({"target": {"path": "x"}}, "target.format"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    (tmp_path / FILE).write_text(json.dumps(record(**changes)))
    with pytest.raises(CheckpointError, match=rf"unlearning\.json: {said}"):
        read_origin(tmp_path)
