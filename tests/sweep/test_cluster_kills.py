"""Sweeps on real Ray whose workers, drivers and nodes are killed: they end as by hand."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.sweep.commands import (
    NAMES,
    OPTIONS,
    ROOT,
    end,
    file_of,
    records,
    run,
    start,
    wait_for_worker,
    workers,
)
from tests.sweep.conftest import LIMIT
from unlearnbench.sweep.home import FolderHome
from unlearnbench.sweep.record import read_standing

pytestmark = pytest.mark.slow
WHOLE = {**OPTIONS, "limit": LIMIT}


def require_whole(path: Path, expected: dict[str, bytes], jobs: int) -> None:
    """All is there, once, and as by hand."""
    out = path.parent / "out"
    assert records(out / "runs", NAMES) == expected
    assert not list(out.glob("runs/*/*/*/partial"))
    assert read_standing(FolderHome(out)).count() == {"done": jobs, "waiting": 0}
    events = (out / "sweep/events.jsonl").read_text(encoding="ascii").splitlines()
    done = [line for line in events if '"is": "done"' in line]
    assert len(done) == jobs, "a job counts twice"


@pytest.mark.parametrize(
    ("seed", "of_workers", "of_drivers", "a_job"), [(31, 3, 2, None), (7, 10, 2, 1)]
)
def test_killed_at_random_it_ends_as_by_hand(
    seed: int,
    of_workers: int,
    of_drivers: int,
    a_job: int | None,
    tmp_path: Path,
    models: Path,
    expected: dict[str, bytes],
) -> None:
    rng = random.Random(seed)
    kills = ["worker"] * of_workers + ["driver"] * of_drivers
    rng.shuffle(kills)
    resources = {"tries": 20, **({"conditions_a_job": a_job} if a_job else {})}
    path = file_of(tmp_path, models, options=WHOLE, resources=resources)
    out, killed = tmp_path / "out", {"worker": 0, "driver": 0}
    process = start(path, "--local", "2")
    while kills and wait_for_worker(out, process):
        time.sleep(rng.uniform(0, 2.5))
        there = workers(out)
        if process.poll() is not None or not there:
            continue
        what = kills.pop()
        killed[what] += 1
        if what == "worker":
            end(rng.choice(there))
            time.sleep(0.5)
            continue
        end(process.pid)
        process.wait(timeout=60)
        gone = time.monotonic() + 60
        while workers(out) and time.monotonic() < gone:
            time.sleep(0.1)
        assert not workers(out), "workers outlive their driver"
        process = start(path, "--local", "2")
    assert process.wait(timeout=900) == 0, path.with_suffix(".log").read_text(encoding="utf-8")
    assert killed == {"worker": of_workers, "driver": of_drivers}, "it ended before"
    require_whole(path, expected, 4 * (4 if a_job else 1) + 2)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without cores, and two nodes of one core."""
    simulated = pytest.importorskip("ray.cluster_utils")
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    own |= {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    small = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    found = simulated.Cluster()
    try:
        port = free_port()
        found.add_node(num_cpus=0, ray_client_server_port=port, **small)
        found.client = f"ray://127.0.0.1:{port}"
        found.nodes = [found.add_node(num_cpus=1, **small) for _ in range(2)]
        yield found
    finally:
        found.shutdown()


# Ray's own start leaves files to the garbage collector.
rays_files = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def home_of(worker: int, cluster: Any) -> Any:
    """The node that a worker is on; None where it has just ended."""
    with contextlib.suppress(psutil.Error):
        above = {each.pid for each in psutil.Process(worker).parents()}
        for node in cluster.nodes:
            if node.all_processes["raylet"][0].process.pid in above:
                return node
    return None


@rays_files
def test_a_node_that_leaves_in_the_middle_takes_nothing_with_it(
    cluster: Any, tmp_path: Path, models: Path, expected: dict[str, bytes]
) -> None:
    path = file_of(tmp_path, models, options=WHOLE)
    process = start(path, "--address", cluster.address)
    lost = None
    while lost is None:
        there = wait_for_worker(tmp_path / "out", process)
        assert there, path.with_suffix(".log").read_text(encoding="utf-8")
        time.sleep(1)
        lost = home_of(there[0], cluster)
    cluster.remove_node(lost, allow_graceful=False)
    assert process.wait(timeout=900) == 0, path.with_suffix(".log").read_text(encoding="utf-8")
    assert "tried again: its worker died" in path.with_suffix(".log").read_text(encoding="utf-8")
    require_whole(path, expected, 6)


@rays_files
def test_the_sweep_may_be_outside_the_cluster_where_it_sees_the_storage(
    cluster: Any, tmp_path: Path, models: Path, expected: dict[str, bytes]
) -> None:
    pytest.importorskip("grpc")
    path = file_of(tmp_path, models, options=WHOLE)
    code, said = run(path, "--address", cluster.client)
    assert code == 0, said
    require_whole(path, expected, 6)
