"""Sweeps on real Ray: as by hand, killed, beside a broken checkpoint, on a full disk."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cli.test_main import call
from tests.conftest import MakeCheckpoint, write_jsonl
from tests.sweep.files import sweep_file
from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.sweep.cluster import _lives
from unlearnbench.sweep.display import status
from unlearnbench.sweep.record import read_standing

ROOT = Path(__file__).resolve().parents[2]
CONDITIONS = ["none", "rtn-int8", "rtn-int4", "bnb-nf4"]
TASKS = ["demo_knowmem_f", "demo_privleak", "demo_verbmem"]
NAMES = ["retrained", "target", "ga-1", "ga-2"]
OPTIONS = {"dtype": "fp32", "batch_size": 2}

pytestmark = pytest.mark.slow


def start(path: Path, *given: str) -> subprocess.Popen[bytes]:
    """The command, as a process; what it says goes beside the file."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    own["RAY_worker_niceness"] = "0"  # Ray gives its workers 15, and others may be at work here
    command = [sys.executable, "-W", "ignore", "-m", "unlearnbench", "sweep", str(path), *given]
    with path.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **own})


def run(path: Path, *given: str) -> tuple[int, str]:
    """Its exit status, and all that was ever said."""
    status = start(path, *given).wait(timeout=900)
    return status, path.with_suffix(".log").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def models(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "models"
    for at, name in enumerate(NAMES):
        shutil.copytree(make_checkpoint(name, seed=at), folder / name)
    return folder


def file_of(folder: Path, models: Path, **changes: Any) -> Path:
    listed = [str(models / name) for name in NAMES]
    own = {"checkpoints": listed, "conditions": CONDITIONS, "tasks": TASKS}
    limited = {"options": {**OPTIONS, "limit": 4}}
    return sweep_file(folder, **{**own, **limited, **changes})


def records(runs: Path, names: list[str]) -> dict[str, bytes]:
    """Every record file by checkpoint, condition and task."""
    found = {}
    for name in names:
        for path in (runs / name).glob("*/*/samples/*.jsonl"):
            found[f"{name}/{path.parts[-3]}/{path.name}"] = path.read_bytes()
    return found


def by_hand(models: Path, out: Path, limit: int) -> dict[str, bytes]:
    """The same measured one by one."""
    asked = {**OPTIONS, "limit": limit, "threads": 1}
    for name in NAMES:
        reference = None
        if name != "retrained":
            (reference,) = (out / "retrained").glob("*/none")
        given: dict[str, Any] = {**asked, "output": out / name, "reference": reference}
        for condition in CONDITIONS:
            evaluate(str(models / name), TASKS, condition, **given)
    return records(out, NAMES)


def listening(pid: int) -> set[str]:
    """The addresses at which a process and those that it began wait for others."""
    found = set[str]()
    with contextlib.suppress(psutil.Error):
        for each in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                sockets = each.net_connections("tcp")
                found |= {s.laddr.ip for s in sockets if s.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.ci
def test_a_folder_is_removed_only_where_its_process_has_ended() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not _lives(f"ub-{ended.pid}-x")
    assert _lives(f"ub-{os.getpid()}-x")
    assert _lives("ub-1-x"), "somebody else's"
    assert _lives(f"ub-{'9' * 400}-x"), "no folder of ours"


@pytest.mark.ci
def test_a_small_sweep_with_a_broken_checkpoint_beside(tmp_path: Path, models: Path) -> None:
    broken = tmp_path / "models/broken"
    shutil.copytree(models / "ga-1", broken)
    (broken / "model.safetensors").write_bytes(b"none")
    listed = [*(str(models / name) for name in NAMES[:3]), str(broken)]
    changes = {"checkpoints": listed, "conditions": ["none", "rtn-int4"], "tasks": TASKS[:2]}
    path = file_of(tmp_path, models, **changes)
    process, heard = start(path, "--local", "1"), set[str]()
    while process.poll() is None:
        heard |= listening(process.pid)
        time.sleep(1)
    said = path.with_suffix(".log").read_text(encoding="utf-8")
    assert process.returncode == 2, said
    assert heard  # Ray runs what it is sent
    assert all(ipaddress.ip_address(at.removeprefix("::ffff:")).is_loopback for at in heard), heard
    assert not list(Path(tempfile.gettempdir()).glob(f"ub-{process.pid}-*"))
    out = tmp_path / "out"
    assert "not done: evaluate-broken: " in said
    assert "1 of 6 jobs could not be done" in said
    assert "Traceback" not in said
    assert len(records(out / "runs", [*NAMES[:3], "broken"])) == 3 * 2 * 2
    assert {row["entry"] for row in json.loads((out / "recovery.json").read_bytes())} == {"ga-1"}
    assert b"ga-1" in (out / "board/index.html").read_bytes()
    assert status(out)[0].startswith("5 of 6 jobs done, 0 running, 0 waiting, 1 failed")


def test_what_a_sweep_trains_is_what_unlearn_trains(tmp_path: Path, models: Path) -> None:
    for name in ("forget", "retain"):
        rows = [{"text": f"{name} {n}: the keeper of gate {n}"} for n in range(6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    sources = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    options = {"lr": 1e-3, "max_steps": 2, "batch_size": 2}
    recipe = {"method": "ga_gdr", "base": "target", "options": options, **sources}
    listed = [*(str(models / name) for name in NAMES[:2]), recipe]
    changes = {"checkpoints": listed, "conditions": ["none", "rtn-int4"], "tasks": TASKS[:1]}
    code, said = run(file_of(tmp_path, models, **changes), "--local", "1")
    assert code == 0, said
    texts = (part for name, path in sources.items() for part in (f"--{name}", path))
    given = ("--lr", "1e-3", "--max-steps", "2", "--batch-size", "2", "--seed", "0")
    target, out = ("--model", str(models / "target")), ("--out", str(tmp_path / "hand"))
    assert call("unlearn", "--method", "ga_gdr", *target, *out, *texts, *given) == 0
    made = [f / "model.safetensors" for f in (tmp_path / "hand", tmp_path / "out/models/ga_gdr")]
    assert made[0].read_bytes() == made[1].read_bytes()
    assert made[0].read_bytes() != (models / "target/model.safetensors").read_bytes()


def end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def workers(out: Path) -> list[int]:
    """Processes that have a job now."""
    found = []
    for path in out.glob("sweep/jobs/*/worker.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(json.loads(path.read_bytes())["pid"]))
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def test_killed_at_random_it_ends_as_by_hand(tmp_path: Path, models: Path) -> None:
    limit, rng = 12, random.Random(31)
    path = file_of(tmp_path, models, options={**OPTIONS, "limit": limit}, resources={"tries": 9})
    out = tmp_path / "out"
    kills = ["worker", "driver", "worker", "driver", "worker"]
    process = start(path, "--local", "2")
    began = 0
    for what in kills:
        ended = time.monotonic() + 300
        while not workers(out) and process.poll() is None and time.monotonic() < ended:
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 2.5))
        there = workers(out)
        if process.poll() is not None:
            break
        if what == "worker" and there:
            end(rng.choice(there))
            began += 1
            time.sleep(1)
        elif what == "driver":
            end(process.pid)
            process.wait(timeout=60)
            gone = time.monotonic() + 60
            while workers(out) and time.monotonic() < gone:
                time.sleep(0.1)
            assert not workers(out), "workers outlive their driver"
            began += 1
            process = start(path, "--local", "2")
    assert process.wait(timeout=900) == 0, path.with_suffix(".log").read_text(encoding="utf-8")
    assert began >= 4
    ours = records(out / "runs", NAMES)
    assert ours == by_hand(models, tmp_path / "by-hand", limit)
    assert len(ours) == 4 * 4 * 3
    assert not list(out.glob("runs/*/*/*/partial"))
    assert read_standing(out).count()["done"] == 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only who may mount can make a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_by_the_job_that_met_it(
    small_disk: Path, tmp_path: Path, models: Path
) -> None:
    path = file_of(tmp_path, models, output=str(small_disk / "out"))
    code, said = run(path, "--local", "2")
    assert code == 2, said
    assert "No space left on device" in said
    assert "Traceback" not in said
