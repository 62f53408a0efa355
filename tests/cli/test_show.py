"""``show``, ``diff`` and ``env`` on runs of a scripted model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill, few_draws
from unlearnbench.util.files import write_text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A checkpoint that gets a tenth right in full precision and three fifths at int4."""
    with few_draws():
        made = Bench(tmp_path_factory.mktemp("show"), n=12)
        made.model("m", none=Skill.of(0.1, 0.7, 0, n=12), int4=Skill.of(0.6, 0.7, 3.0, n=12))
    (folder,) = made.out.glob("m-*")
    return folder / "none", folder / "rtn-int4"


def blocks(shown: str) -> dict[str, list[float]]:
    """Scores of the samples shown under each task's heading."""
    found: dict[str, list[float]] = {}
    for line in shown.splitlines():
        if match := re.match(r"(\w+), worst \d+ of \d+:", line):
            found[match[1]] = []
        elif match := re.match(r"  \w+/\d+  (?:.* )?(-?\d+\.\d+)$", line):
            list(found.values())[-1].append(float(match[1]))
    return found


def test_the_worst_samples_come_first(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("show", str(runs[1]), "--samples", "5") == 0
    shown = capsys.readouterr().out
    assert "rtn-int4" in shown
    found = blocks(shown)
    assert {name: len(scores) for name, scores in found.items()} == {
        "made_knowmem_f": 5,
        "made_knowmem_r": 5,
        "made_privleak": 5,
    }
    assert found["made_knowmem_f"] == sorted(found["made_knowmem_f"], reverse=True)
    assert found["made_knowmem_f"][0] > 70
    assert found["made_knowmem_r"] == sorted(found["made_knowmem_r"])
    assert found["made_knowmem_r"][0] < 80
    assert found["made_privleak"] == sorted(found["made_privleak"]), "most like training data"
    assert shown.count("    output    ") == shown.count("    target    ") == 10


def test_tasks_can_be_chosen_and_none_of_another_name(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("show", str(runs[0]), "--tasks", "made_knowmem_r", "--samples", "1") == 0
    assert list(blocks(capsys.readouterr().out)) == ["made_knowmem_r"]
    assert call("show", str(runs[0]), "--tasks", "nope") == 2
    assert "has no nope" in capsys.readouterr().err


def test_a_difference_is_told_sample_by_sample(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("diff", *map(str, runs), "--samples", "2", "--tasks", "made_knowmem_f") == 0
    shown = capsys.readouterr().out
    assert "condition is none there and rtn-int4 here" in shown
    row = next(line for line in shown.splitlines() if line.startswith("| made_knowmem_f"))
    first, second, change = (float(cell) for cell in row.strip("|").split("|")[1:4])
    assert change == pytest.approx(second - first, abs=0.11)
    assert change > 10
    moved = re.findall(r"^made_knowmem_f \S+: (\S+) -> (\S+)$", shown, re.MULTILINE)
    assert len(moved) == 2
    sizes = [abs(float(after) - float(before)) for before, after in moved]
    assert sizes == sorted(sizes, reverse=True)
    assert shown.count("    - output  ") == shown.count("    + output  ") == 2


def test_a_run_differs_in_nothing_from_itself(
    runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("diff", str(runs[0]), str(runs[0])) == 0
    shown = capsys.readouterr().out
    assert "measured in the same way, on the same weights" in shown
    assert shown.count(" 0 of 12 ") == 2
    assert " 0 of 24 " in shown
    assert "->" not in shown


def test_a_damaged_run_and_none_are_one_line(
    runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("show", str(tmp_path)) == 2
    write_text(tmp_path / "run.json", "{}")
    assert call("diff", str(runs[0]), str(tmp_path)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert all(line.startswith("unlearnbench: error: ") for line in lines)


def test_env_names_versions_and_no_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("env") == 0
    shown = capsys.readouterr().out
    assert re.search(r"^torch: \d", shown, re.MULTILINE)
    assert re.search(
        r"^processor: .+, \d+ cores, bf16 products: (yes|emulated|no)$", shown, re.MULTILINE
    )
    assert str(Path.home()) not in shown
    assert str(Path(__file__).parents[2]) not in shown


@pytest.mark.parametrize(
    ("has", "one_dnn", "word"),
    [
        ({"avx512_f": True, "amx_bf16": True}, True, "yes"),
        ({"avx512_f": True, "avx512_bf16": False}, True, "emulated"),
        ({"avx512_f": False}, False, "no"),
    ],
)
def test_env_tells_a_processors_own_bf16_from_an_emulated_one(
    has: dict[str, bool],
    one_dnn: bool,
    word: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: one_dnn)
    # By AVX-512 alone; this processor may have none.
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: one_dnn)
    assert call("env") == 0
    assert f"bf16 products: {word}\n" in capsys.readouterr().out
