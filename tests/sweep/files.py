"""Sweep files for tests, and workers that are no processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from unlearnbench.sweep.engine import Outcome
from unlearnbench.sweep.graph import Plan, SweepJob, expand
from unlearnbench.sweep.spec import read_sweep

NODE = {"CPU": 2.0, "memory": 16.0 * 2**30}


def checkpoint(folder: Path, size: int = 10) -> Path:
    """A folder that looks like one from outside."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}", encoding="ascii")
    (folder / "model.safetensors").write_bytes(b"0" * size)
    return folder


def sweep_file(folder: Path, **changes: Any) -> Path:
    """Two references and two others, unless ``changes`` say otherwise; None leaves a key out."""
    for name in ("target", "retrained", "ga-1", "ga-2"):
        if not (folder / "models" / name).exists():
            checkpoint(folder / "models" / name)
    content: dict[str, Any] = {
        "output": str(folder / "out"),
        "checkpoints": [str(folder / "models/*")],
        "conditions": ["rtn-int4", "none"],
        "tasks": ["demo_knowmem_f", "demo_privleak"],
        "references": {"target": "target", "retrained": "retrained"},
    }
    content = {k: v for k, v in {**content, **changes}.items() if v is not None}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def plan_of(path: Path) -> Plan:
    """A file, expanded."""
    return expand(*read_sweep(path))


Work = Callable[[SweepJob, int], Outcome | None]


class FakePool:
    """Ends each job at the next ``wait`` as ``work`` says; None: it goes on running."""

    def __init__(self, work: Work, nodes: Sequence[Mapping[str, float]] = (NODE,)) -> None:
        self.work, self.there = work, nodes
        self.begun: list[tuple[str, int, str]] = []
        self.running: list[tuple[SweepJob, int]] = []
        self.most = 0

    def nodes(self) -> Sequence[Mapping[str, float]]:
        return self.there

    def submit(self, job: SweepJob, attempt: int, avoid: str) -> None:
        self.begun.append((job.id, attempt, avoid))
        self.running.append((job, attempt))
        self.most = max(self.most, len(self.running))

    def wait(self, seconds: float) -> Sequence[tuple[str, Outcome]]:
        ended = []
        for each in list(self.running):
            outcome = self.work(*each)
            if outcome is not None:
                self.running.remove(each)
                ended.append((each[0].id, outcome))
        return ended


def writes(plan: Plan) -> Work:
    """Each job makes one file."""

    def work(job: SweepJob, attempt: int) -> Outcome:
        path = plan.output / f"{job.id}.json"
        path.write_text(json.dumps(dict(job.order)), encoding="utf-8")
        return Outcome(made=(path.name,), samples=3, seconds=1.0)

    return work
