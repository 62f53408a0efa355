"""One evaluation over several processes: the same results as one, and what if one of them ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import Toy
from unlearnbench.conditions import find_condition
from unlearnbench.errors import CheckpointError, MetricError, OptionError, UnlearnbenchError
from unlearnbench.evaluation.workers import (
    Loading,
    SharedModel,
    Team,
    obey,
)
from unlearnbench.models.base import ScriptedModel
from unlearnbench.requests import Generate, Generated
from unlearnbench.util.process import is_main, process_count

PROMPTS = [Generate(str(n), f"prompt {n}", 8) for n in range(20)]


class Sharing(ScriptedModel):
    """Signs its answers, and fails where it is told to."""

    rank = 0
    failing: Exception | None = None

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        if self.failing is not None:
            raise self.failing
        for request in requests:
            if request.id not in skip:
                yield Generated(request.id, f"by {self.rank}", 1)


def make_team(model: Any) -> tuple[Team, threading.Thread]:
    """One worker with ``model`` in a thread."""
    ours, theirs = Pipe()

    def work() -> None:
        obey(theirs, model)
        theirs.close()

    thread = threading.Thread(target=work)
    thread.start()
    return Team([ours]), thread


@pytest.fixture
def pair() -> Iterator[tuple[Sharing, Sharing, Team]]:
    own, other = Sharing(), Sharing()
    other.rank = 1
    team, thread = make_team(other)
    yield own, other, team
    team.close()
    thread.join(timeout=10)
    assert not thread.is_alive()


def test_each_request_is_answered_once_by_either(pair: tuple[Sharing, Sharing, Team]) -> None:
    own, _, team = pair
    answers = [*SharedModel(own, team).generate(PROMPTS, skip={"3", "4"})]
    assert sorted(int(a.id) for a in answers) == [n for n in range(20) if n not in (3, 4)]
    by_main = [a.id for a in answers if a.text == "by 0"]
    assert len(by_main) == 9
    again = [*SharedModel(own, team).generate(PROMPTS, skip={*by_main, "3", "4"})]
    assert {a.text for a in again} == {"by 1"}, "what was done moves no request to another process"


def test_a_workers_error_is_the_main_processs_and_the_next_task_goes_on(
    pair: tuple[Sharing, Sharing, Team],
) -> None:
    own, other, team = pair
    model = SharedModel(own, team)
    other.failing = MetricError("text 7: not finite")
    with pytest.raises(MetricError, match="text 7: not finite"):
        [*model.generate(PROMPTS)]
    other.failing = ZeroDivisionError("no")
    with pytest.raises(UnlearnbenchError, match="in a worker: ZeroDivisionError: no"):
        [*model.generate(PROMPTS)]
    other.failing = FileNotFoundError(2, "No such file", "/gone")
    with pytest.raises(UnlearnbenchError, match="in a worker: FileNotFoundError: .*/gone"):
        [*model.generate(PROMPTS)]
    other.failing, own.failing = None, MetricError("mine")
    with pytest.raises(MetricError, match="mine"):
        [*model.generate(PROMPTS)]
    own.failing = None
    # The worker answers the task that failed here still; those answers belong to no other task.
    assert len([*model.generate(PROMPTS)]) == len(PROMPTS)


def test_a_worker_that_ended_is_one_clear_line() -> None:
    ours, theirs = Pipe()
    team = Team([ours])
    theirs.close()
    with pytest.raises(OptionError, match="a worker process of this launch ended"):
        [*SharedModel(Sharing(), team).generate(PROMPTS)]


def test_a_report_that_cannot_be_read_is_not_waited_on() -> None:
    ours, theirs = Pipe()
    team = Team([ours])
    theirs.send_bytes(b"no pickle")
    with pytest.raises(OptionError, match="a worker process of this launch ended"):
        [*SharedModel(Sharing(), team).generate(PROMPTS)]
    theirs.close()


def test_processes_that_load_something_else_are_refused(tiny: Path) -> None:
    from unlearnbench.conditions.options import KernelOptions

    team, thread = make_team(None)
    asked = Loading(str(tiny), KernelOptions(device="cpu"), find_condition("none"), None)
    try:
        with pytest.raises(CheckpointError, match="loaded different weights"):
            team.load(asked, lambda: ScriptedModel())
    finally:
        team.close()
        thread.join(timeout=60)


@pytest.mark.parametrize(
    "name", ["gptq-int4-g128", "prune-wanda-50", "relearn-5", "relearn-5+rtn-int4"]
)
def test_what_is_made_of_texts_needs_one_process(tiny: Path, name: str) -> None:
    from unlearnbench.conditions.options import KernelOptions

    spec = find_condition(name)
    asked = Loading(str(tiny), KernelOptions(device="cpu"), spec, None)
    with pytest.raises(OptionError, match="use one process"):
        Team([]).load(asked, lambda: ScriptedModel())


def test_who_works(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (process_count(), is_main()) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert (process_count(), is_main()) == (2, True)
    monkeypatch.setenv("RANK", "1")
    assert not is_main()


def evaluation(model: Path, toy: Toy, out: Path) -> list[str]:
    words = ["--model", str(model), "--tasks", "toy", "--quant", "none,rtn-int4", "--dtype", "fp32"]
    words += ["--data-dir", str(toy.data), "--include-path", str(toy.tasks)]
    return [*words, "--batch-size", "2", "--output", str(out)]


def launch(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """``accelerate launch`` with two processes on CPU."""
    words = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    words += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    words += ["--main_process_port", "0", "-m", "unlearnbench", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
        check=False,
    )


def content(out: Path) -> dict[str, Any]:
    """The settings and results of every run, and every record, by file."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("run.json")):
        run = json.loads(path.read_bytes())
        found[str(path.relative_to(out))] = (run["settings"], run["condition"], run["tasks"])
        for task in sorted(path.parent.glob("samples/*.jsonl")):
            lines = [json.loads(line) for line in task.read_bytes().splitlines()]
            found[str(task.relative_to(out))] = lines
    return found


def require_alike(one: Any, two: Any) -> None:
    """The same texts, and numbers within a millionth: batches are others, and so are last bits."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            if not key.endswith(
                ("sha256", "threads")
            ):  # last bits may differ, and each shares the cores
                require_alike(one[key], two[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two)
        for ours, theirs in zip(one, two, strict=True):
            require_alike(ours, theirs)
    elif isinstance(one, float):
        assert two == pytest.approx(one, rel=1e-5, abs=1e-6)
    else:
        assert one == two


@pytest.mark.slow
@pytest.mark.ci
def test_two_processes_write_what_one_writes(
    tiny: Path, toy: Toy, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*evaluation(tiny, toy, tmp_path / "one")) == 0
    one = capsys.readouterr().out
    two = launch(evaluation(tiny, toy, tmp_path / "both"))
    assert two.returncode == 0, two.stderr[-3000:]
    require_alike(content(tmp_path / "one"), content(tmp_path / "both"))
    assert len(content(tmp_path / "both")) > 4
    assert [line.split("|")[1:5] for line in two.stdout.splitlines()] == [
        line.split("|")[1:5] for line in one.splitlines()
    ], "one process speaks"
