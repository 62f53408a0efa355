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
from unlearnbench.sweep.engine import Engine
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


@pytest.mark.parametrize("asked", ["nodes", "submit", "wait", "get"])
def test_a_cluster_that_is_gone_is_one_line(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was asked when it went."""
    real = pytest.importorskip("ray")

    def lost(*given: object, **more: object) -> None:
        raise ConnectionError("reconnecting to the cluster failed")

    node = {"Alive": True, "Resources": {"CPU": 8.0, "memory": 2.0**40, "GPU": 8.0}}
    task: Any = SimpleNamespace(remote=lost if asked == "submit" else lambda order: object())
    task.options = lambda **wants: task
    ray = SimpleNamespace(
        exceptions=real.exceptions,
        remote=lambda **options: lambda function: task,
        nodes=lost if asked == "nodes" else lambda: [node],
        wait=lost if asked == "wait" else lambda waiting, **more: (waiting[:1], waiting[1:]),
        get=lost,
    )
    monkeypatch.setattr(cluster, "_join", lambda *given: None)
    plan, shown = plan_of(sweep_file(tmp_path)), lambda *given: None
    with (
        pytest.raises(SweepError, match="does not answer any more; the same command goes on"),
        opened(plan, {}) as record,
        connected("ray://head:10001", None),
    ):
        Engine(plan, RayPool(ray, plan), record, shown).run()
