"""What a sweep costs beside its work: expanding, scheduling, Ray; and what a second worker brings.

``nice -n -15`` in front, on a machine that others use too.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.sweep_work import nothings
from tests.conftest import MakeCheckpoint
from tests.sweep.commands import CONDITIONS, OPTIONS, ROOT, TASKS
from tests.sweep.files import FakePool, checkpoint, plan_of, sweep_file
from unlearnbench.sweep.engine import Engine, Outcome
from unlearnbench.sweep.record import opened

pytestmark = pytest.mark.bench


def megabytes() -> float:
    """The most that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def test_a_dry_run_of_ten_thousand_jobs(tmp_path: Path) -> None:
    for at in range(5000):
        checkpoint(tmp_path / f"many/m{at}")
    grid = {"method": "ga", "base": "ga-1", "forget": "f.jsonl", "seeds": list(range(2500))}
    listed = [str(tmp_path / "models/*"), str(tmp_path / "many/*"), grid]
    path = sweep_file(tmp_path, checkpoints=listed)
    started, cpu = time.monotonic(), time.process_time()
    plan = plan_of(path)
    spent = time.monotonic() - started, time.process_time() - cpu
    print(f"\n{len(plan.jobs)} jobs: {spent[0]:.2f} s, {spent[1]:.2f} s of the processor")


def test_ten_thousand_jobs_that_do_nothing_without_ray(tmp_path: Path) -> None:
    plan, before = nothings(tmp_path / "out", 10_000), megabytes()
    cpu = time.process_time()
    with opened(plan, {}) as record:
        Engine(plan, FakePool(lambda job, attempt: Outcome()), record).run()
    spent = time.process_time() - cpu
    grown = megabytes() - before
    print(f"\nengine: {spent / 10:.2f} ms a job, {grown:.0f} MB more for 10,000")
    started = time.monotonic()
    with opened(plan, {}) as record:
        assert Engine(plan, FakePool(lambda job, attempt: None), record).run().kept == 10_000
    print(f"gone on with when all are done: {time.monotonic() - started:.2f} s")


def measured(what: object, cores: int, output: Path) -> dict[str, Any]:
    """``sweep_work`` in a process of its own."""
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.sweep_work"]
    command += [str(what), str(cores), str(output)]
    done = subprocess.run(
        command, env={**os.environ, **own}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_what_ray_adds_to_a_job_that_does_nothing(tmp_path: Path) -> None:
    for n, cores in ((1_000, 1), (1_000, 2), (10_000, 2)):
        found = measured(n, cores, tmp_path / f"{n}-{cores}")
        each = 1000 * found["seconds"] / n
        print(f"\n{n} jobs, {cores} cores: {each:.1f} ms a job; load {os.getloadavg()[0]:.1f}")
        print(found)


def test_two_workers_against_one_in_turns(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    models = tmp_path / "many"
    for at in range(12):
        shutil.copytree(make_checkpoint(f"m{at}", seed=at), models / f"m{at}")
    asked: dict[str, Any] = {"checkpoints": [str(models / "*")], "conditions": CONDITIONS}
    asked |= {"tasks": [TASKS[0], TASKS[2]], "options": {**OPTIONS, "limit": 24}}
    ratios = []
    for turn in range(3):
        seconds = {}
        for cores in (1, 2) if turn % 2 else (2, 1):
            output = tmp_path / f"{turn}-{cores}"
            path = sweep_file(tmp_path, **asked, references=None, output=str(output))
            found = measured(path, cores, output)
            seconds[cores] = found["seconds"]
            print(f"\n{cores} workers, load {os.getloadavg()[0]:.1f}: {found}")
            each = found["busy"] / found["jobs"]
        ratios.append(seconds[1] / seconds[2])
        print(f"jobs of {each:.1f} s: {ratios[-1]:.2f} times as fast")
    print(f"in the middle {statistics.median(ratios):.2f}")
