from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.sweep.files import plan_of, sweep_file
from unlearnbench.errors import InUseError, OptionError, ResultError
from unlearnbench.sweep.display import Display, duration, state_line, status
from unlearnbench.sweep.engine import Tally
from unlearnbench.sweep.graph import Plan
from unlearnbench.sweep.record import opened, state_folder


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return plan_of(sweep_file(tmp_path))


def test_the_time_left_follows_from_the_jobs_that_ended() -> None:
    progress = Tally(total=10, done=4, kept=2, running=2, samples=40, busy=20.0)
    progress.undone["a"] = "why"
    progress.started -= 20
    assert progress.left == 5 * 10 / 2
    line = state_line(progress)
    assert line.startswith("4 of 10 done, 2 running, 1 not done; 25 s left; ")
    assert [duration(s) for s in (99, 120, 7200)] == ["99 s", "2 min", "2.0 h"]
    assert Tally(total=3).left is None


def test_a_log_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display()
    display(Tally(total=3, running=1), "")
    display(Tally(total=3, done=1, running=1), "a: done\x1b[2J")
    assert capsys.readouterr().err == "[1 of 3 done, 1 running; 0 s left] a: done\\x1b[2J\n"


def test_status_from_another_terminal(plan: Plan) -> None:
    with pytest.raises(OptionError, match="holds no sweep"):
        status(plan.output)
    with opened(plan, {}) as record:
        with pytest.raises(InUseError), opened(plan, {}):
            pass
        record.event("evaluate-retrained", "done", samples=8)
        record.event("evaluate-target", "running", attempt=1)
        record.event("evaluate-ga-1", "failed", error="no weights\nthere")
        folder = state_folder(plan.output) / "jobs/evaluate-target"
        folder.mkdir(parents=True)
        who = {"host": "node\x1b7", "pid": 12}
        (folder / "worker.json").write_text(json.dumps(who), encoding="ascii")
        head, running, failed = status(plan.output)
    assert head.startswith("1 of 6 jobs done, 1 running, 3 waiting, 1 failed; ")
    assert running == "running: evaluate-target for 0 s on node\\x1b7, process 12"
    assert failed == "failed: evaluate-ga-1: no weights there"
    head, failed = status(plan.output)
    assert head.startswith("1 of 6 jobs done, 0 running, 4 waiting, 1 failed; not running now; ")


@pytest.mark.parametrize("line", ["3", '{"t": "x"}', '{"t": 1, "is": "done"}', "{", '{"t": 1}'])
def test_a_record_that_is_damaged_is_said(line: str, plan: Plan) -> None:
    with opened(plan, {}):
        pass
    path = state_folder(plan.output) / "events.jsonl"
    path.write_text(f"{line}\n", encoding="ascii")
    with pytest.raises(ResultError, match=r"events\.jsonl"):
        status(plan.output)


def test_half_a_last_line_does_not_count(plan: Plan) -> None:
    with opened(plan, {}) as record:
        record.event("board", "failed", error="why")
    path = state_folder(plan.output) / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"t": 1, "job": "half')
    assert "1 failed" in status(plan.output)[0]
    with opened(plan, {}):
        pass
    assert b"half" not in path.read_bytes()
