"""Clusters that are not there, or go away."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.sweep.files import plan_of, sweep_file
from unlearnbench.errors import OptionError, SweepError
from unlearnbench.sweep import cluster
from unlearnbench.sweep.cluster import RayPool, connected
from unlearnbench.sweep.record import opened


@pytest.mark.parametrize("address", ["http://head:1", "ray://", "head", "ray://a/b:1", "a b:1", ""])
def test_an_address_that_is_none(address: str) -> None:
    pytest.importorskip("ray")
    said = "use auto, HOST:PORT or ray://HOST:PORT"
    with pytest.raises(OptionError, match=said), connected(address, None):
        pass


def test_rays_client_without_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "find_spec", lambda name: None)
    said = r"Ray's client needs grpc; install it, here and on the cluster's head, with: pip install"
    with pytest.raises(OptionError, match=said), connected("ray://head:10001", None):
        pass


def test_a_cluster_that_is_gone_is_one_line(tmp_path: Path) -> None:
    def lost(*given: object, **more: object) -> None:
        raise ConnectionError("reconnecting to the cluster failed")

    task: Any = SimpleNamespace(remote=lambda order: object())
    task.options = lambda **wants: task
    ray = SimpleNamespace(remote=lambda **options: lambda function: task, wait=lost)
    plan = plan_of(sweep_file(tmp_path))
    with opened(plan, {}):
        pool = RayPool(ray, plan)
        pool.submit(plan.jobs[0], 1, "")
        with pytest.raises(SweepError, match="does not answer any more; the same command goes on"):
            pool.wait(1)
