"""Sweeps on real Ray: as by hand, beside a broken checkpoint, on a full disk."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cli.test_main import call
from tests.conftest import write_jsonl
from tests.sweep.commands import NAMES, OPTIONS, TASKS, file_of, records, run, start
from tests.sweep.conftest import LIMIT
from unlearnbench.sweep.display import status
from unlearnbench.sweep.scratch import lives, own_folder

pytestmark = pytest.mark.slow


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
def test_a_folder_is_removed_only_where_its_process_has_ended(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = own_folder(tmp_path).name.rsplit("-", 2)[0]
    assert not lives(f"{mine}-{ended.pid}-x")
    assert lives(f"{mine}-{os.getpid()}-x")
    assert lives(f"{mine}-1-x"), "somebody else's"
    assert lives(f"{mine}-{'9' * 400}-x"), "no folder of ours"
    assert lives(f"ub-0x0x-{ended.pid}-x"), "of another machine, where it may live"


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
    assert not list(Path(tempfile.gettempdir()).glob(f"ub-*-{process.pid}-*"))
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=120k", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("only who may mount can make a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_by_the_job_that_met_it_and_more_room_completes_it(
    small_disk: Path, tmp_path: Path, models: Path, expected: dict[str, bytes]
) -> None:
    out = small_disk / "out"
    path = file_of(tmp_path, models, output=str(out), options={**OPTIONS, "limit": LIMIT})
    code, said = run(path, "--local", "2")
    assert code == 2, said
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert len(records(out / "runs", NAMES)) < len(expected)
    subprocess.run(["mount", "-o", "remount,size=32m", str(small_disk)], check=True)
    code, said = run(path, "--local", "2")
    assert code == 0, said
    assert records(out / "runs", NAMES) == expected
    assert b"ga-2" in (out / "board/index.html").read_bytes()
