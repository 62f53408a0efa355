"""Two processes on one run folder, signals, and a disk that is really full."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Toy
from tests.durability.conftest import Start, Started
from tests.durability.test_faults import kept_answers, records, require_readable
from unlearnbench import evaluate
from unlearnbench.cli import main
from unlearnbench.errors import OutputError, ResultError
from unlearnbench.util.files import lock_folder

from tests.evaluation.test_evaluate import logged, script  # isort: skip

Call = Callable[[list[str]], tuple[object, str, list[str]]]
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command line in this process: exit status, output, lines on standard error."""

    def run(arguments: list[str]) -> tuple[object, str, list[str]]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        out, err = capsys.readouterr()
        return caught.value.code, out, err.splitlines()

    return run


def wait_for(log: Path, answers: int) -> None:
    deadline = time.monotonic() + 300
    while not log.exists() or log.read_text().count("\n") < answers:
        assert time.monotonic() < deadline, log.with_suffix(".err").read_text()
        time.sleep(0.002)


class Runs:
    """One command, started again and again."""

    def __init__(self, start: Start, toy: Toy, tiny: Path) -> None:
        self.start, self.log = start, toy.out.parent / "kept.log"
        self.arguments = [
            *("--model", str(tiny), "--tasks", "toy", "--batch-size", "1"),
            *("--quant", "none,rtn-int4", "--answer-blank", "prompt", *toy.arguments),
        ]

    def until(self, answers: int) -> Started:
        """Started, and waiting since it has so many answers."""
        Path(f"{self.log}.hold").write_text(str(answers))
        started = self.start(self.log, self.arguments)
        wait_for(self.log, answers)
        return started

    @property
    def last_line(self) -> str:
        return self.log.with_suffix(".err").read_text().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.ci
@posix
def test_one_process_wins_and_every_stop_can_be_gone_on_from(
    toy: Toy, tiny: Path, start_forked: Start, call: Call
) -> None:
    import torch

    torch.set_num_threads(1)  # as in the processes that are stopped
    runs = Runs(start_forked, toy, tiny)
    elsewhere = [*runs.arguments, "--output", str(toy.out.parent / "undisturbed")]
    assert call(elsewhere)[0] == 0

    first = runs.until(2)
    os.kill(first.pid, signal.SIGSTOP)  # it holds the lock for as long as this takes
    try:
        before = records(toy.out), kept_answers(toy.out)
        status, out, lines = call(runs.arguments)
        assert (status, out, len(lines)) == (2, "", 1)
        assert f"is being written by process {first.pid} on host {platform.node()};" in lines[0]
        assert (records(toy.out), kept_answers(toy.out)) == before
    finally:
        os.kill(first.pid, signal.SIGTERM)
        os.kill(first.pid, signal.SIGCONT)
    assert first.wait() == 143
    assert runs.last_line.startswith("interrupted; every answer so far is kept in ")
    assert "the same command (without --fresh) goes on" in runs.last_line
    assert not list(toy.out.rglob(".holder")), "the lock was released"

    second = runs.until(5)
    os.kill(second.pid, signal.SIGINT)
    assert second.wait() == 130
    assert runs.last_line.startswith("interrupted; every answer")
    assert "Traceback" not in runs.log.with_suffix(".err").read_text()

    third = runs.until(8)
    os.kill(third.pid, signal.SIGKILL)
    assert third.wait() == -signal.SIGKILL
    assert len(list(toy.out.rglob(".holder"))) == 2, "it could not release anything"
    status, out, lines = call(runs.arguments)
    assert status == 0, lines
    kept = runs.log.read_text().splitlines()
    assert len(set(kept)) == len(kept) < 2 * 12
    assert records(toy.out) == records(toy.out.parent / "undisturbed")
    assert any(re.search(r"goes on after \d+ of \d+ answers", line) for line in lines)


def test_a_second_run_in_one_process_is_kept_out_too(toy: Toy) -> None:
    model = script(toy)
    folder = toy.out / f"unlearned-{model.checkpoint.weights_sha256[:8]}" / "none"
    with (
        lock_folder(folder),
        pytest.raises(ResultError, match=f"written by process {os.getpid()} on host"),
    ):
        evaluate(model, "toy", **toy.options)
    assert model.asked == []
    assert len(evaluate(model, "toy", **toy.options)) == 1


def test_the_lock_is_released_when_a_run_fails(toy: Toy) -> None:
    model = script(toy)
    model.refuse = "toy_verbmem"
    for _ in range(2):
        with pytest.raises(Exception, match="refused"):
            evaluate(model, "toy_verbmem", **toy.options)
    assert not list(toy.out.rglob(".holder"))


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', '{"host": 1}', "\x00"])
def test_a_damaged_holder_is_no_obstacle(tmp_path: Path, content: str) -> None:
    folder = tmp_path / "m" / "none"
    folder.mkdir(parents=True)
    (folder / ".holder").write_text(content)
    with (
        lock_folder(folder),
        pytest.raises(ResultError, match="is being written by"),
        lock_folder(folder),
    ):
        pass


def test_a_holder_of_another_host_is_told_and_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "m" / "none"
    folder.mkdir(parents=True)
    (folder / ".holder").write_text(json.dumps({"pid": 7, "host": "node\x1b[31m9"}))
    with logged() as lines, lock_folder(folder):
        pass
    (line,) = lines
    assert "was last written by process 7 on host node\\x1b[31m9, which did not end it" in line
    with logged() as lines, lock_folder(folder):
        pass
    assert lines == []


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (NotImplementedError("no flock"), ResultError, r"cannot be locked .*no flock.*local disk"),
        (OSError(37, "No locks available"), ResultError, "cannot be locked .*No locks available"),
        (OSError(28, "No space left on device"), OutputError, "cannot be written .No space left"),
    ],
)
def test_a_file_system_without_locks_is_an_error(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    kind: type[ResultError],
    said: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", fail)
    with pytest.raises(kind, match=said), lock_folder(tmp_path / "m" / "none"):
        pass


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "unlearnbench-test", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no tmpfs can be mounted here: {error}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_disk_that_fills_up_again_and_again(
    toy: Toy, tiny: Path, small_disk: Path, call: Call
) -> None:
    """Some more room after each failure: what was complete stays, and the run goes on."""
    output, ballast = small_disk / "out", small_disk / "ballast"
    arguments = [*("--model", str(tiny), "--tasks", "toy", "--ppl-lower", "--batch-size", "1")]
    arguments += [*toy.arguments[:-1], str(output)]
    assert call([*arguments[:-1], str(toy.out)])[0] == 0
    free, seen, failures = 0, set[str](), 0
    while True:
        ballast.unlink(missing_ok=True)
        with ballast.open("wb") as file:
            while os.statvfs(small_disk).f_bavail * 4096 > free:
                file.write(b"\0" * 4096)
                file.flush()
        status, out, lines = call(arguments)
        require_readable(output)
        assert seen <= kept_answers(output)
        seen = kept_answers(output)
        if status == 0:
            break
        assert (status, out) == (2, "")
        assert lines[-1].startswith("unlearnbench: error: ")
        assert re.search("(cannot be|not) writ.*No space left on device", lines[-1])
        assert "Traceback" not in "\n".join(lines)
        failures, free = failures + 1, free + 8192
        assert free < 256 * 1024
    assert failures > 3
    assert records(output) == records(toy.out)
    assert len(seen) == 3 + 3 + 2 * 6
