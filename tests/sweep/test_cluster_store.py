"""Sweeps on real Ray into an object store: killed at random, and on nodes that leave."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.commands import NAMES, OPTIONS, end, file_of, start
from tests.sweep.conftest import LIMIT
from tests.sweep.stores import Served, everything
from tests.sweep.test_cluster_kills import cluster, home_of, rays_files
from unlearnbench.sweep.home import home_of as home_at
from unlearnbench.sweep.record import read_standing
from unlearnbench.sweep.store import Store

pytestmark = pytest.mark.slow
WHOLE = {**OPTIONS, "limit": LIMIT}
__all__ = ["cluster"]


def workers(url: str) -> list[int]:
    """Processes that have a job now."""
    store, found = Store(url), []
    for name in store.names("sweep/jobs/"):
        if name.endswith("/claim.json") and (read := store.read(name)):
            claim = json.loads(read[0])
            found += [int(claim["by"]["pid"])] if claim["state"] == "running" else []
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]


def wait_for_worker(url: str, process: subprocess.Popen[bytes]) -> list[int]:
    """The processes that have a job, once there is one; none where the sweep ends before."""
    ends = time.monotonic() + 300
    while not (found := workers(url)) and process.poll() is None:
        assert time.monotonic() < ends, "no worker begins"
        time.sleep(0.1)
    return found


def require_whole(url: str, expected: dict[str, bytes], jobs: int) -> None:
    """All is there, once, and as by hand."""
    found = everything(url)
    shown = {}
    for name, content in found.items():
        parts = name.split("/")
        if parts[0] == "runs" and parts[-2] == "samples":
            shown[f"{parts[1]}/{parts[3]}/{parts[-1]}"] = content
    assert shown == expected
    assert not [name for name in found if "/partial/" in name or name.endswith("/state.json")]
    assert read_standing(home_at(url)).count() == {"done": jobs, "waiting": 0}
    events = b"".join(found[name] for name in sorted(found) if "/events/" in name)
    assert events.count(b'"is": "done"') == jobs, "a job counts twice"
    assert all(f"board/entries/{name}.json" in found for name in NAMES)


def test_killed_at_random_it_ends_as_by_hand(
    tmp_path: Path, models: Path, expected: dict[str, bytes], s3: Served
) -> None:
    rng, url = random.Random(31), s3.url()
    kills = ["worker"] * 3 + ["driver"] * 2
    rng.shuffle(kills)
    path = file_of(tmp_path, models, output=url, options=WHOLE, resources={"tries": 20})
    process = start(path, "--local", "2")
    while kills and wait_for_worker(url, process):
        time.sleep(rng.uniform(0, 2.5))
        there = workers(url)
        if process.poll() is not None or not there:
            continue
        if kills.pop() == "worker":
            end(rng.choice(there))
            time.sleep(0.5)
            continue
        end(process.pid)
        process.wait(timeout=60)
        gone = time.monotonic() + 60
        while workers(url) and time.monotonic() < gone:
            time.sleep(0.1)
        process = start(path, "--local", "2")
    assert process.wait(timeout=900) == 0, path.with_suffix(".log").read_text(encoding="utf-8")
    assert not kills, "it ended before"
    require_whole(url, expected, 6)


@rays_files
def test_a_node_that_leaves_in_the_middle_takes_nothing_with_it(
    s3: Served,
    cluster: Any,
    tmp_path: Path,
    models: Path,
    expected: dict[str, bytes],
) -> None:
    url, lost = s3.url(), None
    path = file_of(tmp_path, models, output=url, options=WHOLE)
    process = start(path, "--address", cluster.address)
    log = path.with_suffix(".log")
    while lost is None:
        there = wait_for_worker(url, process)
        assert there, log.read_text(encoding="utf-8")
        time.sleep(1)
        lost = home_of(there[0], cluster)
    cluster.remove_node(lost, allow_graceful=False)
    assert process.wait(timeout=900) == 0, log.read_text(encoding="utf-8")
    assert "tried again: its worker died" in log.read_text(encoding="utf-8")
    require_whole(url, expected, 6)
