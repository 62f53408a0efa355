"""The demo from the command line, in processes of its own.

pytest -m slow tests/demo    # some minutes on 2 cores
pytest -m long tests/demo    # three seeds and the control: a quarter of an hour
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.independent.boards import board_differences
from tests.independent.rows import comparison, differences
from tests.recovery.test_policy import run_steps
from tests.recovery.test_recovery_independent import models
from tests.tutorials import FOLDER, follow
from unlearnbench import methods

Rows = dict[tuple[str, str, str], dict[str, Any]]
F, R = "demo_knowmem_f", "demo_knowmem_r"
CONSTRAINED = ("ga_gdr", "ga_klr", "npo_gdr", "npo_klr")


def command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "unlearnbench", "demo", "--out", str(out), *more]


def demo(out: Path, *more: str) -> Rows:
    """Also holds its memory, all processes together, to the 2 GB that docs promise."""
    done = subprocess.run(command(out, *more), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = re.search(r"at most ([0-9.]+) GB", done.stdout + done.stderr)
    assert said is not None
    assert 0 < float(said[1]) <= 2.0
    return rows_of(out)


def rows_of(out: Path) -> Rows:
    found = json.loads((out / "recovery.json").read_text(encoding="utf-8"))
    return {(row["entry"], row["task"], row["precision"]): row for row in found}


def keeps_the_rest(rows: Rows, name: str, share: float = 0.75) -> bool:
    """KnowMem_r at every precision, against the target's in full precision."""
    return all(
        min(row["full"], row["quantized"]) >= share * row["target_full"]
        for (entry, task, _), row in rows.items()
        if (entry, task) == (name, R)
    )


def recovers(rows: Rows, name: str, precision: str = "rtn-int4") -> bool:
    """The bounds of the project's issue for a method that 4 bits undo."""
    row, int8 = rows[name, F, precision], rows[name, F, "rtn-int8"]
    target = row["target_full"]
    return bool(
        row["full"] <= 0.35 * target
        and row["quantized"] >= max(0.5 * target, 2 * row["full"])
        and abs(int8["quantized"] - int8["full"]) <= 5
        and keeps_the_rest(rows, name)
    )


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One seed, two methods."""
    out: Path = tmp_path_factory.mktemp("demo") / "out"
    demo(out, "--methods", "ga_gdr,ga_gdr_sure", "--quant", "none,rtn-int8,rtn-int4")
    return out


@pytest.mark.slow
@pytest.mark.ci
def test_forgotten_knowledge_comes_back_at_4_bits_and_not_with_sure(short: Path) -> None:
    rows = rows_of(short)
    assert recovers(rows, "ga_gdr")
    assert rows["ga_gdr", F, "rtn-int4"]["verdict"] == "recovers"
    assert rows["ga_gdr", F, "rtn-int8"]["verdict"] == "forgets"
    sure = rows["ga_gdr_sure", F, "rtn-int4"]
    assert sure["full"] <= 0.35 * sure["target_full"]
    assert sure["quantized"] <= 0.35 * sure["target_full"]
    assert sure["verdict"] != "recovers"
    assert keeps_the_rest(rows, "ga_gdr_sure")


@pytest.mark.slow
def test_what_forgets_exactly_never_comes_back(short: Path, tmp_path: Path) -> None:
    """The control, beside methods whose models are not trained again."""
    out = Path(shutil.copytree(short, tmp_path / "out"))
    before = {path: path.stat().st_mtime_ns for path in out.glob("models/ga*/*")}
    names = ("--methods", "ga_gdr,sisa", "--quant", "none,rtn-int8,rtn-int4")
    rows = demo(out, *names, "--conditions", "none")
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for precision in ("rtn-int8", "rtn-int4"):
        row = rows["sisa", F, precision]
        assert max(row["full"], row["quantized"]) <= 0.1 * row["target_full"]
        low, high = row["recovered_ci"]
        assert low <= 0 <= high
        assert row["verdict"] != "recovers"
    assert rows["ga_gdr", F, "rtn-int4"]["verdict"] == "recovers"
    assert keeps_the_rest(rows, "sisa")
    assert "trained again without the rows" in (out / "README.md").read_text(encoding="utf-8")
    assert json.loads((out / "models/sisa/unlearning.json").read_bytes())["method"] == "sisa"


@pytest.mark.slow
@pytest.mark.ci
def test_a_second_implementation_finds_every_figure(short: Path) -> None:
    stated = json.loads((short / "recovery.json").read_text(encoding="utf-8"))
    assert differences(stated, comparison(*models(short / "runs"))) == []
    assert board_differences(short) == []


@pytest.mark.slow
@pytest.mark.ci
def test_a_second_call_computes_nothing_again(
    short: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def everything() -> dict[Path, int]:
        files = [path for path in short.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: path.stat().st_mtime_ns for path in files}

    def no_processes(*given: object, **more: object) -> None:
        raise AssertionError("a process was started")

    before = everything()
    monkeypatch.setattr("unlearnbench.demo.pipeline.ProcessPoolExecutor", no_processes)
    arguments = ["--methods", "ga_gdr,ga_gdr_sure", "--quant", "none,rtn-int8,rtn-int4"]
    assert call("demo", "--out", str(short), *arguments) == 0
    assert everything() == before
    out = capsys.readouterr().out
    assert "everything is done already" in out
    assert any(line.split()[:1] == ["ga_gdr"] for line in out.splitlines())  # the table
    assert f"all tasks: {short / 'recovery.json'}" in out


@pytest.mark.slow
@pytest.mark.ci
def test_the_page_shows_the_table_and_the_plot(short: Path, browser: Any) -> None:
    page = browser.new_page()
    errors: list[str] = []
    page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((short / "index.html").as_uri())
    while page.locator("#more").is_visible():
        page.click("#more")
    cells = page.locator("#table > tbody > tr").evaluate_all(
        "all => all.map(row => [...row.children].map(cell => cell.innerText.trim()))"
    )
    table = {(row[0], row[1], row[2]): row for row in cells}
    rows = rows_of(short)
    assert {entry for entry, _, _ in table} == {"ga_gdr", "ga_gdr_sure", "target", "retrained"}

    def first(text: str) -> float:
        return float(text.split()[0].replace("\u2212", "-").rstrip("*"))

    for (entry, task, precision), row in rows.items():
        shown = table[entry, task, precision]
        assert first(shown[3]) == pytest.approx(row["quantized"], abs=0.051)
        assert first(shown[5]) == pytest.approx(row["change"], abs=0.051)
        assert shown[7].endswith(row["verdict"])
        assert first(table[entry, task, "none"][3]) == pytest.approx(row["full"], abs=0.051)
        assert first(table["target", task, precision][3]) == pytest.approx(row["target"], abs=0.051)
    names = page.locator("#slopes g[role=img]").evaluate_all(
        "all => all.map((one) => one.getAttribute('aria-label').split('.')[0])"
    )
    assert sorted(names) == ["ga_gdr", "ga_gdr_sure"]
    # In full precision, and at the condition.
    for mark in (".from", ".to"):
        assert page.locator(f"#slopes {mark}").count() == 2
    assert errors == []
    assert "method ga_gdr, " in page.content(), "how it was unlearned, beside its scores"
    assert "selected demo_knowmem_f, all rows" in page.content()
    board = (short / "README.md").read_text(encoding="utf-8")
    assert "The demo's board" in board
    assert "- ga&#95;gdr: its checkpoint was chosen on the questions of demo" in board
    assert errors == []
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("retrained", 0), ("ga_gdr", 1), ("target", 1)])
def test_the_actions_steps_gate_the_demos_checkpoints(
    short: Path, tmp_path: Path, name: str, status: int
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        "tasks: [demo_knowmem_f, demo_knowmem_r]\n"
        "precisions: [none, rtn-int8, rtn-int4]\nmax_recovered: 0.2\nmax_excess: 25\n"
        "min_utility: 0.5\nmin_samples: 20\n",
        encoding="utf-8",
    )
    inputs = {
        "model": str(short / "models" / name),
        "quant": "none,rtn-int8,rtn-int4",
        "tasks": "demo_knowmem_f,demo_knowmem_r",
        "options": "--dtype fp32",
        "policy": str(policy),
        "target": str(short / "runs/target"),
        "retrained": str(short / "runs/retrained"),
    }
    found, out = run_steps(tmp_path, inputs)
    assert found == status, out
    assert ("pass" if status == 0 else "FAIL") in out.splitlines()
    assert ("::error title=" in out) == (status == 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_three_seeds(tmp_path: Path, seed: int) -> None:
    rows = demo(tmp_path / "out", "--seed", str(seed))
    found = [name for name in CONSTRAINED if recovers(rows, name)]
    assert len(found) >= 2, found
    sure = rows["ga_gdr_sure", F, "rtn-int4"]
    assert max(sure["full"], sure["quantized"]) <= 0.35 * sure["target_full"]
    assert sure["verdict"] != "recovers"
    assert keeps_the_rest(rows, "ga_gdr_sure")


@pytest.mark.long
def test_the_control_brings_little_back(tmp_path: Path) -> None:
    rows = demo(tmp_path / "out", "--dense", "--methods", "ga_gdr,npo_klr")
    for name in ("ga_gdr", "npo_klr"):
        row = rows[name, F, "rtn-int4"]
        assert row["full"] <= 0.35 * row["target_full"], "it has forgotten, and"
        assert row["quantized"] <= 0.35 * row["target_full"], "nothing comes back"
        assert keeps_the_rest(rows, name)
        verdicts = {p: rows[name, F, p]["verdict"] for p in ("rtn-int8", "rtn-int4", "bnb-nf4")}
        assert "recovers" not in verdicts.values(), verdicts


@pytest.mark.slow
def test_a_killed_demo_ends_with_the_same_table(short: Path, tmp_path: Path) -> None:
    """SIGKILL at three moments: while the target trains, while a method does, and later."""
    out = tmp_path / "out"
    arguments = ["--methods", "ga_gdr,ga_gdr_sure", "--quant", "none,rtn-int8,rtn-int4"]
    rng = random.Random(5)
    moments = {"models/target/.training": 8, "models/ga_gdr/.training": 8, "runs/ga_gdr": 3}
    for waiting_for, longest in moments.items():
        process = subprocess.Popen(
            command(out, *arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while not (out / waiting_for).exists():
            assert process.poll() is None, f"ended before {waiting_for}"
            time.sleep(0.2)
        time.sleep(rng.uniform(0, longest))
        assert process.poll() is None, "it has ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        time.sleep(1)  # its workers see it and end
    rows = demo(out, *arguments)
    assert rows == rows_of(short)


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("page", sorted(FOLDER.glob("*.md")), ids=lambda page: page.stem)
def test_a_tutorial_runs_as_it_stands(
    short: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, page: Path
) -> None:
    shutil.copytree(short, tmp_path / "demo-out")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(methods, "FOLDERS", [*methods.FOLDERS, tmp_path / "unlearnbench/methods"])
    assert follow(page) >= 2
