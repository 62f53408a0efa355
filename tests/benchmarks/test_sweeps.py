"""What a sweep costs beside its work: expanding, scheduling, and how two workers scale."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import MakeCheckpoint
from tests.sweep.files import FakePool, checkpoint, plan_of, sweep_file
from unlearnbench.sweep.cluster import RayPool, connected
from unlearnbench.sweep.engine import Engine, Outcome
from unlearnbench.sweep.graph import Plan, SweepJob
from unlearnbench.sweep.record import opened
from unlearnbench.sweep.resources import Demand

pytestmark = pytest.mark.bench


def megabytes() -> float:
    """The most that this process held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def nothings(output: Path, n: int) -> Plan:
    output.mkdir()
    order = {"kind": "nothing", "name": "nothing"}
    jobs = tuple(SweepJob(f"nothing-{at}", order, Demand(1, 0, 2**20)) for at in range(n))
    return Plan(output, jobs, 3, n)


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


def test_ten_thousand_jobs_that_do_nothing_on_ray(tmp_path: Path) -> None:
    before = megabytes()
    with connected(None, 2) as ray:
        for n in (20, 10_000):  # the first start the workers
            plan = nothings(tmp_path / f"out{n}", n)
            started, cpu = time.monotonic(), time.process_time()
            with opened(plan, {}) as record:
                Engine(plan, RayPool(ray, plan), record).run()
            spent = time.monotonic() - started
            driver = time.process_time() - cpu
            print(
                f"\n{n} jobs: {spent:.1f} s, {1000 * spent / n:.2f} ms each; driver {driver:.1f} s"
            )
    print(f"{megabytes() - before:.0f} MB more in the driver")


def test_two_workers_against_one(tmp_path: Path, make_checkpoint: MakeCheckpoint) -> None:
    source = make_checkpoint("m", num_hidden_layers=8, hidden_size=256, intermediate_size=512)
    for at in range(6):
        shutil.copytree(source, tmp_path / f"many/m{at}")
    taken: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(2):
        for cores in (1, 2):
            own = {"checkpoints": [str(tmp_path / "many/*")], "references": None}
            limited = {"options": {"limit": 16, "dtype": "fp32"}, "tasks": ["demo_verbmem"]}
            out = str(tmp_path / f"out-{cores}-{turn}")
            path = sweep_file(tmp_path, **own, **limited, output=out)
            command = [sys.executable, "-W", "ignore", "-m", "unlearnbench", "sweep", str(path)]
            started = time.monotonic()
            subprocess.run([*command, "--local", str(cores)], check=True, capture_output=True)
            taken[cores].append(time.monotonic() - started)
    best = {cores: min(times) for cores, times in taken.items()}
    print(f"\n{taken}: {best[1] / best[2]:.2f} times as fast")
