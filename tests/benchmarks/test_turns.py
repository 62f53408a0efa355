"""What decides published ratios: processes that take turns, and how their time is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.benchmarks.turns import active, run_in_turns

ROOT = Path(__file__).parents[2]
GAP = 0.02
WORK = """
import json, sys, time
from tests.benchmarks.turns import begin
begin()
start = last = time.time()
spent = 0.0
while spent < float(sys.argv[2]):
    now = time.time()
    spent += min(now - last, float(sys.argv[3]))  # a longer gap is a turn of another
    last = now
open(sys.argv[1], "w").write(json.dumps([start, time.time()]))
"""


def command(file: Path, seconds: float, program: str = WORK) -> list[str]:
    return [sys.executable, "-c", program, str(file), str(seconds), str(GAP)]


def test_one_runs_at_a_time_and_its_own_time_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    work = {"short": 0.6, "long": 1.2}
    turns = run_in_turns(
        {name: command(tmp_path / name, seconds) for name, seconds in work.items()},
        {"short": 0.2, "long": 0.4},
    )
    assert min(map(len, turns.values())) >= 3
    every = sorted(turn for own in turns.values() for turn in own)
    assert all(a[1] <= b[0] for a, b in pairwise(every))
    for name, seconds in work.items():
        span = json.loads((tmp_path / name).read_text(encoding="utf-8"))
        own = active(turns[name], *span)
        # Its work, and not what the other did meanwhile; of a gap it counts up to GAP itself.
        assert seconds - GAP * len(turns[name]) < own < sum(b - a for a, b in turns[name]) + 1e-6
        assert own < 0.9 * (span[1] - span[0])


def test_one_after_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    turns = run_in_turns({name: command(tmp_path / name, 0.1) for name in "ab"}, None)
    assert [len(own) for own in turns.values()] == [1, 1]
    assert turns["a"][0][1] <= turns["b"][0][0]


def test_a_command_that_fails_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    fails = "from tests.benchmarks.turns import begin\nbegin()\nraise SystemExit(3)"
    commands = {"a": command(tmp_path / "a", 60), "b": command(tmp_path / "b", 0, fails)}
    with pytest.raises(subprocess.CalledProcessError):
        run_in_turns(commands, dict.fromkeys(commands, 0.1))
    early = {"a": command(tmp_path / "a", 0, "raise SystemExit(4)")}
    with pytest.raises(subprocess.CalledProcessError):
        run_in_turns(early, None)


def test_seconds_within_a_span() -> None:
    turns = [(0.0, 5.0), (10.0, 15.0), (20.0, 25.0)]
    assert active(turns, 3.0, 21.0) == 2.0 + 5.0 + 1.0
    assert active(turns, 6.0, 9.0) == 0.0
    assert active(turns, 11.0, 12.0) == 1.0
