"""SIGKILL at random moments of a three-precision evaluation of the demo tasks."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.durability.conftest import Start, Started, start_process

PRECISIONS = ("none", "rtn-int8", "rtn-int4")
TASKS = ("demo_knowmem_f", "demo_knowmem_r", "demo_privleak", "demo_verbmem")


def answers(limit: int) -> int:
    """PrivLeak has two splits and, with --ppl-lower, two passes."""
    return len(PRECISIONS) * (3 * limit + 2 * 2 * limit)


def arguments(model: Path, output: Path, limit: int) -> list[str]:
    return [
        *("--model", str(model), "--tasks", "demo", "--quant", ",".join(PRECISIONS)),
        *("--limit", str(limit), "--batch-size", "2", "--ppl-lower", "--output", str(output)),
    ]


def files(output: Path) -> dict[str, bytes]:
    """Every file below the one model's folder, by its path there."""
    found = output.glob("*/**/*")
    return {str(path.relative_to(output)): path.read_bytes() for path in found if path.is_file()}


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def of_records(found: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in found.items() if "/samples/" in name}


def answered(found: dict[str, bytes]) -> set[str]:
    """The answers in whole lines of journals, as the log names them."""
    names = set()
    for name, content in found.items():
        if "/partial/" in name:
            for line in content[: content.rfind(b"\n") + 1].splitlines()[1:]:
                names.add(f"{name.split('/')[-3]} {json.loads(line)['id']}")
    return names


def tasks(run_json: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run_json)["tasks"]
    return found


@dataclass
class Killer:
    """Starts the command, kills it, and holds what was complete against what is there later."""

    start: Start
    command: list[str]
    output: Path
    log: Path
    rng: random.Random
    kills: int = 0
    journalled: set[str] = field(default_factory=set)
    caught: Counter[str] = field(default_factory=Counter)

    def kept(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def attempt(self, wait_for: int | None) -> int:
        """Run until ``wait_for`` further answers are kept, and a random moment more."""
        before, complete = len(self.kept()), files(self.output)
        known = answered(complete)
        self.journalled |= known
        started = self.start(self.log, self.command)
        if wait_for is not None:
            deadline = time.monotonic() + 300
            while len(self.kept()) < before + wait_for and is_running(started.pid):
                assert time.monotonic() < deadline, self.log.with_suffix(".err")
                time.sleep(0.001)
            time.sleep(self.rng.choice([0.0, 0.002, 0.02, 0.2]) * self.rng.random())
            with suppress(ProcessLookupError):
                os.kill(started.pid, signal.SIGKILL)
        status = started.wait()
        self.kills += status == -signal.SIGKILL
        assert not known & set(self.kept()[before:]), "scored twice"
        self.require_kept(complete)
        return status

    def require_kept(self, before: dict[str, bytes]) -> None:
        """Every whole line of a journal is there still, or its task is complete; what a run.json
        names is as it was.
        """
        now = files(self.output)
        for name, content in before.items():
            if "/partial/" in name:
                whole = content[: content.rfind(b"\n") + 1]
                self.caught["lines"] += max(0, whole.count(b"\n") - 1)
                records = name.replace("/partial/", "/samples/")
                assert now.get(name, b"").startswith(whole) or records in now, name
            elif "/samples/" in name:
                assert now[name] == content, name
                self.caught["records"] += content.count(b"\n")


def undisturbed(start: Start, model: Path, folder: Path, limit: int) -> dict[str, bytes]:
    log = folder / "undisturbed.log"
    assert start(log, arguments(model, folder / "undisturbed", limit)).wait() == 0, log
    assert len(log.read_text().splitlines()) == answers(limit)
    return files(folder / "undisturbed")


def kill_and_resume(start: Start, model: Path, folder: Path, kills: int, limit: int) -> None:
    want = undisturbed(start, model, folder, limit)
    seed = int.from_bytes(os.urandom(4), "big")
    output = folder / "killed"
    killer = Killer(
        start, arguments(model, output, limit), output, folder / "killed.log", random.Random(seed)
    )
    said = f"seed {seed}; output in {folder}"
    try:
        while killer.kills < kills:
            left = answers(limit) - len(killer.kept())
            # Leaves as many answers for the kills after this one, on average.
            most = 2 * left // (kills - killer.kills + 1)
            status = killer.attempt(killer.rng.randint(0, max(0, min(most, left - 1))))
            assert status in (-signal.SIGKILL, 0), status
            if status == 0 and killer.kills < kills:
                pytest.fail("it ended before it could be killed")
        assert killer.attempt(None) == 0
        got, kept = files(output), killer.kept()
        assert killer.kills == kills
        assert [n for n, times in Counter(kept).items() if times > 1] == [], "scored twice"
        # A process may be killed after an answer is in the journal and before it is in the log.
        every = (folder / "undisturbed.log").read_text().splitlines()
        assert {*kept} | killer.journalled == {*every}
        assert of_records(got) == of_records(want)
        assert {n: c.count(b"\n") for n, c in of_records(got).items()} == {
            n: (2 if "privleak" in n else 1) * limit for n in of_records(want)
        }
        assert set(got) == set(want), "nothing is left behind"
        for name in got:
            if name.endswith("run.json"):
                assert tasks(got[name]) == tasks(want[name])
                assert set(tasks(got[name])) == set(TASKS)
    except BaseException:
        print(f"\n{said}; {killer.caught}")
        raise
    print(f"\n{kills} kills; found again: {dict(killer.caught)}; {said}")


@pytest.mark.slow
@pytest.mark.ci
def test_five_kills_lose_nothing(start_forked: Start, tiny: Path, tmp_path: Path) -> None:
    kill_and_resume(start_forked, tiny, tmp_path, 5, 4)


@pytest.mark.slow
def test_thirty_kills_lose_nothing(start_forked: Start, tiny: Path, tmp_path: Path) -> None:
    """Every fifth in a Python process of its own, killed while it imports too."""
    calls = itertools.count(1)

    def start(log: Path, arguments: list[str]) -> Started:
        return (start_forked if next(calls) % 5 else start_process)(log, arguments)

    kill_and_resume(start, tiny, tmp_path, 30, 6)
