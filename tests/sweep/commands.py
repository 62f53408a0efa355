"""Sweeps by the command, as processes, and what they leave."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.sweep.files import sweep_file
from unlearnbench.evaluation.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[2]
CONDITIONS = ["none", "rtn-int8", "rtn-int4", "bnb-nf4"]
TASKS = ["demo_knowmem_f", "demo_privleak", "demo_verbmem"]
NAMES = ["retrained", "target", "ga-1", "ga-2"]
OPTIONS = {"dtype": "fp32", "batch_size": 2}


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


def end(pid: int) -> None:
    """Kill a process, which may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def workers(out: Path) -> list[int]:
    """Processes that have a job now."""
    found = []
    for path in out.glob("sweep/jobs/*/worker.json"):
        with contextlib.suppress(OSError, ValueError):
            found.append(int(json.loads(path.read_bytes())["pid"]))
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def wait_for_worker(out: Path, process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that have a job, once there is one; none where the sweep ends before."""
    ended = time.monotonic() + 300
    while not (found := workers(out)) and process.poll() is None:
        assert time.monotonic() < ended, "no worker begins"
        time.sleep(0.05)
    return found
