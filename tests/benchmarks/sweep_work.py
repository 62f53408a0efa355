"""One sweep on a local Ray, measured: ``python -m tests.benchmarks.sweep_work FILE|N CORES OUT``.

FILE is a sweep's; N so many jobs that do nothing. Prints one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.sweep.files import plan_of
from unlearnbench.sweep.cluster import RayPool, connected
from unlearnbench.sweep.engine import Engine
from unlearnbench.sweep.graph import Plan, SweepJob
from unlearnbench.sweep.home import FolderHome
from unlearnbench.sweep.record import opened
from unlearnbench.sweep.resources import Demand


def nothings(output: Path, n: int) -> Plan:
    """Jobs that do nothing."""
    output.mkdir(parents=True)
    order = {"kind": "nothing", "name": "nothing"}
    jobs = tuple(SweepJob(f"nothing-{at}", order, Demand(1, 0, 2**20)) for at in range(n))
    return Plan(FolderHome(output), jobs, 3, n)


def costs() -> dict[int, tuple[str, float, float]]:
    """Of this process and those below: program, seconds of a processor, megabytes."""
    own, found = psutil.Process(), {}
    for each in (own, *own.children(recursive=True)):
        with suppress(psutil.Error):  # it has just ended
            times, memory = each.cpu_times(), each.memory_full_info()
            found[each.pid] = (each.name(), times.user + times.system, memory.pss / 1e6)
    return found


def main(what: str, cores: str, output: str) -> Mapping[str, object]:
    """Run it; seconds, and what this process (``own``) and Ray's took of a processor and hold."""
    plan = nothings(Path(output), int(what)) if what.isdigit() else plan_of(Path(what))
    plan.output.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with opened(plan, {}) as record, connected(None, int(cores)) as ray:
        up = time.monotonic() - began
        pool = RayPool(ray, plan)
        before, started = costs(), time.monotonic()
        tally = Engine(plan, pool, record).run()
        spent, after = time.monotonic() - started, costs()
        pool.stop()
    assert not tally.undone, tally.undone
    own = psutil.Process().pid
    cpu = {pid: found[1] - before.get(pid, ("", 0.0, 0.0))[1] for pid, found in after.items()}
    megabytes = {pid: found[2] for pid, found in after.items()}
    grown = megabytes[own] - before[own][2]
    return {
        "jobs": tally.total,
        "start": round(up, 2),
        "seconds": round(spent, 2),
        "busy": round(tally.busy, 2),
        "own cpu": round(cpu.pop(own), 2),
        "ray cpu": round(sum(cpu.values()), 2),
        "own MB": round(megabytes.pop(own)),
        "own MB grown": round(grown),
        "ray MB": round(sum(megabytes.values())),
    }


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
