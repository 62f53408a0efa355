"""Requests one after another: each begins where the one before it ended."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import CORPUS, write_jsonl


@pytest.fixture
def line(tiny: Path, tmp_path: Path) -> list[str]:
    for i in range(3):
        write_jsonl(tmp_path / f"{i}.jsonl", [{"text": t} for t in CORPUS[2 * i : 2 * i + 2]])
    asked = ",".join(str(tmp_path / f"{i}.jsonl") for i in range(3))
    return [
        *("unlearn", "--model", str(tiny), "--method", "ga", "--out", str(tmp_path / "out")),
        *("--requests", asked, "--batch-size", "2", "--save-steps", "0", "--max-steps", "1"),
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()


def records(out: Path) -> list[dict[str, Any]]:
    found = sorted(out.glob("request-*"))
    return [json.loads((folder / "unlearning.json").read_bytes()) for folder in found]


@pytest.mark.slow  # six trainings
@pytest.mark.ci
def test_each_request_goes_on_from_the_last_and_a_stopped_one_is_resumed(
    line: list[str], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(*line) == 0
    made = records(out)
    assert [Path(r["data"][0]["source"]).name for r in made] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    # Each target is, by its hash, what the request before it made.
    places = [out / f"request-{i}" for i in (1, 2, 3)]
    assert [r["target"]["path"] for r in made] == [str(tiny), *map(str, places[:2])]
    assert len({r["target"]["weights_sha256"] for r in made}) == 3
    whole = [sha256(place) for place in places]
    # One training by hand is the second request.
    alone = [*line, "--model", str(places[0]), "--out", str(tmp_path / "alone")]
    alone[alone.index("--requests")] = "--forget"
    alone[alone.index("--forget") + 1] = str(tmp_path / "1.jsonl")
    assert call(*alone) == 0
    assert sha256(tmp_path / "alone") == whole[1]
    # Without its last one the folder is a sequence that was stopped.
    for file in places[2].iterdir():
        file.unlink()
    places[2].rmdir()
    capsys.readouterr()
    assert call(*line) == 2
    assert "add --resume to go on" in capsys.readouterr().err
    assert call(*line, "--resume", "--seed", "1") == 2
    assert "requests with others: options" in capsys.readouterr().err
    (tmp_path / "spans.jsonl").write_text("{}")  # a request that has not begun would take it
    assert call(*line, "--resume", "--spans", str(tmp_path / "spans.jsonl")) == 2
    err = capsys.readouterr().err
    assert "requests with others: spans is absent there" in err
    assert "spans file is absent there" in err
    assert call(*line, "--resume") == 0
    assert "request-3: ga, 1 steps" in capsys.readouterr().out
    assert [sha256(place) for place in places] == whole
    assert call(*line, "--resume") == 2
    assert "finished; use another --out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"--requests": "{}/0.jsonl"}, "takes two or more"),
        ({"--requests": "{0}/0.jsonl,{0}/none.jsonl"}, "cannot be read"),
        ({"--forget": "{}/0.jsonl"}, "give one of them"),
    ],
)
def test_bad_requests_are_one_line_before_anything_is_trained(
    line: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, str],
    says: str,
) -> None:
    more = [word.format(tmp_path) for pair in change.items() for word in pair]
    assert call(*line, *more) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
