"""What a sweep costs beside its work: expanding and scheduling."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest

from tests.sweep.files import FakePool, checkpoint, plan_of, sweep_file
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
