from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.cli.test_main import call
from tests.sweep.files import sweep_file


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", str(sweep_file(tmp_path)), "--dry-run", "--local", "1") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"6 jobs, 16 cells, into {tmp_path / 'out'}"
    assert "  evaluate-ga-1 after evaluate-retrained" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--local", "1", "--address", "auto"], "give one of them"),
        (["--local", "0"], "--local"),
        (["more.yaml"], "sweep takes one file, and more.yaml is a second"),
        (["--local", "1"], "a job takes 2 cores, 1.0 GiB, and no node has that"),
    ],
)
def test_bad_input_is_one_line(
    given: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sweep_file(tmp_path, resources={"cpus": 2})
    assert call("sweep", str(path), *given) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert call("sweep", str(sweep_file(tmp_path))) == 2
    assert "pip install 'unlearnbench[sweep]'" in capsys.readouterr().err


def test_status_of_a_folder_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("sweep", "status", str(tmp_path)) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert call("sweep", "status") == 2
    assert "which DIR" in capsys.readouterr().err
