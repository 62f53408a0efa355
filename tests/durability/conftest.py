from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass
class Started:
    """A running command: its process, and how to wait for its exit status (negative: a signal)."""

    pid: int
    wait: Callable[[], int]


Start = Callable[[Path, list[str]], Started]


@pytest.fixture(scope="session")
def start_forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a command in a process of its own, forked from one that has imported the libraries.
    Its output goes to a file beside the log.
    """
    command = [sys.executable, "-W", "ignore", "-m", "tests.durability.counted", "--fork"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=environment()
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None

        def read() -> int:
            assert server.stdout is not None
            return int(server.stdout.readline())

        def start(log: Path, arguments: list[str]) -> Started:
            assert server.stdin is not None
            asked = [str(log), arguments, str(log.with_suffix(".err"))]
            server.stdin.write(json.dumps(asked) + "\n")
            server.stdin.flush()
            return Started(read(), read)

        yield start
        server.stdin.close()


def start_process(log: Path, arguments: list[str]) -> Started:
    """Start a command in a Python process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.durability.counted", str(log)]
    with log.with_suffix(".err").open("a") as errors:
        process = subprocess.Popen(
            [*command, *arguments], stdout=errors, stderr=errors, cwd=ROOT, env=environment()
        )
    return Started(process.pid, process.wait)
