"""Pushing to a stub of the hub's HTTP API, by the real client in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import call
from tests.conftest import Toy
from tests.hub_stub import HubStub, serve
from tests.toy_runs import Bench, Skill
from unlearnbench.boards.hub import plan_upload
from unlearnbench.errors import OptionError, ResultError

ROOT = Path(__file__).resolve().parents[2]
REPO = "someone/results"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Bench(tmp_path_factory.mktemp("push"), n=5).run("m", "none", Skill.of(0.5, 0.5, n=5))
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    return folder


def command(stub: HubStub, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_ENDPOINT": stub.endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0"}
    environment["PYTHONPATH"] = str(ROOT)
    environment["HF_HUB_DISABLE_XET"] = "1"
    return subprocess.run(
        [sys.executable, "-m", "unlearnbench", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_a_run_folder_arrives_as_it_is(run_folder: Path) -> None:
    with serve(HubStub(REPO, {"main": {}})) as stub:
        done = command(stub, "push", str(run_folder), "--to", REPO)
        assert done.returncode == 0, done.stderr
        refused = command(stub, "push", str(run_folder), "--to", "someone/forbidden")
    base = f"results/{run_folder.parent.name}/none"
    names = [
        "run.json",
        *(f"samples/made_{n}.jsonl" for n in ("knowmem_f", "knowmem_r", "privleak")),
    ]
    expected = {f"{base}/{name}": (run_folder / name).read_bytes() for name in names}
    assert stub.pushed == expected
    assert stub.created == [{"name": "results", "organization": "someone", "visibility": "private"}]
    assert stub.tokens == {"Bearer hf_secret"}
    assert "pushed: " in done.stdout
    assert refused.returncode == 2
    assert len(refused.stderr.splitlines()) == 1
    assert "nothing was pushed to someone/forbidden" in refused.stderr


def test_a_dry_run_says_what_would_leave_and_sends_nothing(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("push", str(run_folder), "--to", REPO, "--dry-run") == 0
    out = capsys.readouterr().out
    total = sum(p.stat().st_size for p in [run_folder / "run.json", *run_folder.glob("samples/*")])
    assert f"to the data set {REPO}, private if it is new (an existing one stays" in out
    assert f"): 4 files, {total:,} bytes" in out
    assert "made_knowmem_f.jsonl; holds prompts, raw outputs, targets" in out
    assert "notes.txt" not in out
    assert "nothing was sent" in out
    assert call("push", str(run_folder), "--to", REPO, "--dry-run", "--public") == 0
    assert "PUBLIC if it is new" in capsys.readouterr().out


def test_what_is_no_run_or_would_collide(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="run.json"):
        plan_upload([tmp_path])
    with pytest.raises(OptionError, match="would both be"):
        plan_upload([run_folder, run_folder])
    other = tmp_path / "none"
    (other / "samples").mkdir(parents=True)
    (other / "run.json").write_bytes((run_folder / "run.json").read_bytes())
    (other / "samples" / "x.jsonl").symlink_to("/etc/hostname")
    with pytest.raises(ResultError, match="is a link"):
        plan_upload([other])


def test_options_that_push_nothing_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--model", "x", "--tasks", "news", "--push-dry-run") == 2
    assert "need --push-to-hub" in capsys.readouterr().err
    assert call("--model", "x", "--tasks", "news", "--push-to-hub", "a/b/c") == 2
    assert "--push-to-hub" in capsys.readouterr().err


@pytest.mark.slow
def test_the_main_job_and_an_entry_push_what_they_made(
    toy: Toy, tiny: Path, tmp_path: Path
) -> None:
    job = ["--model", str(tiny), "--tasks", "toy_knowmem_f", *toy.arguments]
    with serve(HubStub(REPO, {"main": {}})) as stub:
        done = command(stub, *job, "--push-to-hub", REPO, "--push-public")
        assert done.returncode == 0, done.stderr
        assert "PUBLIC if it is new" in done.stdout
        assert [c["visibility"] for c in stub.created] == ["public"]
        (name,) = [name for name in stub.pushed if name.endswith("/run.json")]
    (run,) = toy.out.glob("tiny-*/none/run.json")
    assert stub.pushed[name] == run.read_bytes()
    board = tmp_path / "board"
    board.mkdir()
    (board / "board.yaml").write_text(BOARD, encoding="utf-8")
    add = ["leaderboard", "add", str(run.parent), "--board", str(board), "--name", "one"]
    with serve(HubStub(REPO, {"main": {}})) as stub:
        done = command(stub, *add, "--push-to-hub", REPO)
        assert done.returncode == 0, done.stderr
    entry = board / "entries" / "one.json"
    assert stub.pushed == {"entries/board/one.json": entry.read_bytes()}
    assert json.loads(stub.pushed["entries/board/one.json"])["name"] == "one"


BOARD = """title: A board
base_model: made
tasks: {toy_knowmem_f: 1.0}
precisions: [none]
utility_floor: 0.5
ranking: [toy_knowmem_f]
publish_texts: true
"""
