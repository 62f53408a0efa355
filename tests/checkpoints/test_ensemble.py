from __future__ import annotations

import json
from pathlib import Path

import pytest

from unlearnbench.checkpoints.ensemble import (
    EnsembleFacts,
    find_ensemble,
    read_ensemble,
    write_ensemble,
)
from unlearnbench.errors import CheckpointError


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (EnsembleFacts("whp", ("baseline", "reinforced"), {"alpha": 2.0}), "whp.json"),
        (EnsembleFacts("toy", ("a", "b", "c"), {"share": 0.5}), "ensemble.json"),
    ],
)
def test_what_is_written_is_read(tmp_path: Path, facts: EnsembleFacts, name: str) -> None:
    assert find_ensemble(str(tmp_path)) is None
    write_ensemble(tmp_path, facts)
    assert find_ensemble(str(tmp_path)) == tmp_path / name
    assert read_ensemble(tmp_path / name) == facts


@pytest.mark.parametrize("model", ["~nobody-of-this-name/x", "a\0b", "x" * 5000, "org/name"])
def test_what_is_no_path_is_no_ensemble(model: str) -> None:
    assert find_ensemble(model) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format_version": 2}, "unknown format"),
        ({"more": 1}, "unknown format"),
        ({"models": "ab"}, "no list of 2 to 63 names"),
        ({"models": ["a"]}, "no list of 2 to 63 names"),
        ({"models": [f"m{n}" for n in range(64)]}, "no list of 2 to 63 names"),
        ({"models": ["a", "../b"]}, "no plain names"),
        ({"models": ["a", ""]}, "no plain names"),
        ({"models": [["a"], {}]}, "no plain names"),
        ({"method": "../evil"}, "no plain names"),
        ({"models": ["a", "a"]}, "one twice"),
        ({"numbers": []}, "no short mapping"),
        ({"numbers": {"n\x1b[2J": "1"}}, r"n\\x1b\[2J is no finite number"),
        ({"numbers": {"n": True}}, "n is no finite number"),
        ({"numbers": {"n": float("nan")}}, "n is no finite number"),
        ({"numbers": {"n": 10**400}}, "n is no finite number"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    content = {"format_version": 1, "method": "toy", "models": ["a", "b"], "numbers": {"n": 1}}
    path = tmp_path / "ensemble.json"
    path.write_text(json.dumps(content | changes))
    with pytest.raises(CheckpointError, match=said):
        read_ensemble(path)
