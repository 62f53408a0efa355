"""What says which rows an ensemble's shards have is a stranger's file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from unlearnbench.checkpoints.shard_plan import read_plan
from unlearnbench.errors import CheckpointError

ROWS = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(4)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"base": "../x"}, "base: String should match"),
        ({"format_version": 2}, "format_version: Input should be 1"),
        ({"shards": []}, "shards: .* at least 1"),
        ({"shards": [[]], "seeds": [0]}, r"shards\.0: .* at least 1"),
        ({"shards": [[["x"]]], "seeds": [0]}, r"shards\.0\.0\.0: String should match"),
        ({"shards": [[[]]] * 64}, "shards: .* at most 63"),
        ({"seeds": [0]}, "not all as many slices, or not all a seed"),
        ({"seeds": [True, 0]}, r"seeds\.0: Input should be a valid integer"),
        ({"shards": [[[]], [[], []]]}, "not all as many slices"),
        ({"more": "../x"}, "more: Extra inputs"),
    ],
)
def test_a_damaged_plan_is_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    content = {"format_version": 1, "base": ROWS[0], "seeds": [0, 9]}
    content |= {"shards": [[ROWS[:2]], [ROWS[2:4]]]}
    (tmp_path / "shards.json").write_text(json.dumps(content))
    assert read_plan(str(tmp_path)).rows == set(ROWS[:4])
    (tmp_path / "shards.json").write_text(json.dumps(content | change))
    with pytest.raises(CheckpointError, match=said):
        read_plan(str(tmp_path))
