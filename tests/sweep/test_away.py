"""Sweeps in an object store, on workers that are this process: as by hand, whatever is lost."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest

from tests.conftest import MakeCheckpoint, write_jsonl
from tests.sweep.commands import ROOT
from tests.sweep.files import NODE, plan_of, sweep_file
from tests.sweep.stores import Served, everything, served
from unlearnbench.errors import InUseError, StoreError
from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.evaluation.score import score_checkpoint
from unlearnbench.sweep import lease as leases
from unlearnbench.sweep import store as stores
from unlearnbench.sweep.claim import JobClaim, Uploads
from unlearnbench.sweep.display import status
from unlearnbench.sweep.engine import Engine, Outcome, Tally
from unlearnbench.sweep.graph import Plan, SweepJob
from unlearnbench.sweep.kinds import KINDS
from unlearnbench.sweep.record import Record, opened
from unlearnbench.sweep.store import Store
from unlearnbench.sweep.work import make_order, perform, surroundings
from unlearnbench.training.job import Job as Training
from unlearnbench.training.job import unlearn
from unlearnbench.training.options import CorpusOptions, TrainOptions

TASKS = ["demo_knowmem_f", "demo_privleak"]
NAMES = ("retrained", "target", "ga")
kinds: Any = KINDS


class HerePool:
    """Does each job when it is handed out, in this process."""

    def __init__(self, plan: Plan, record: Record) -> None:
        self.around, self.record = surroundings(plan), record
        self.ended: list[tuple[str, Outcome]] = []

    def nodes(self) -> Sequence[Mapping[str, float]]:
        return [NODE]

    def submit(self, job: SweepJob, attempt: int, avoid: str) -> None:
        report = json.loads(perform(make_order(job, self.around, attempt, self.record.key(job))))
        made = tuple(report.pop("made"))
        self.ended.append((job.id, Outcome(made=made, **report)))

    def wait(self, seconds: float) -> Sequence[tuple[str, Outcome]]:
        ended, self.ended = self.ended, []
        return ended


def sweep(plan: Plan) -> Tally:
    with opened(plan, {}) as record:
        return Engine(plan, HerePool(plan, record), record).run()


@pytest.fixture
def plan(tiny_models: Path, s3: Served, tmp_path: Path) -> Plan:
    return plan_of(store_file(tiny_models, s3.url(), tmp_path))


def store_file(models: Path, url: str, tmp_path: Path, **changes: Any) -> Path:
    given: dict[str, Any] = {
        "output": url,
        "checkpoints": [str(models / name) for name in NAMES],
        "tasks": TASKS,
        "options": {"limit": 4, "dtype": "fp32"},
    }
    return sweep_file(tmp_path, **{**given, **changes})


@pytest.fixture(scope="module")
def tiny_models(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("of-stores")
    for at, name in enumerate(NAMES):
        make_checkpoint(name, seed=at).rename(folder / name)
    return folder


def records(found: Mapping[str, bytes]) -> dict[str, bytes]:
    return {name: found[name] for name in found if name.startswith("runs/") and "samples" in name}


@pytest.fixture(scope="module")
def by_hand(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("by-hand")
    for name in NAMES:
        refers = [] if name == "retrained" else (out / "runs/retrained").glob("*/none")
        given: dict[str, Any] = {"limit": 4, "dtype": "fp32", "threads": 1}
        given |= {"output": out / "runs" / name, "reference": next(iter(refers), None)}
        evaluate(str(tiny_models / name), TASKS, "none,rtn-int4", **given)
    paths = out.glob("runs/*/*/*/samples/*.jsonl")
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where workers have their folders; nothing is left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    yield folder
    assert not list(folder.glob("ub-*"))


@pytest.mark.slow
@pytest.mark.ci
def test_a_sweep_in_a_store_is_as_by_hand_and_goes_on(
    plan: Plan, by_hand: dict[str, bytes]
) -> None:
    first = sweep(plan)
    assert (first.done, first.kept, first.undone) == (5, 0, {})
    found = everything(plan.home.where)
    assert records(found) == by_hand
    assert b"ga" in found["board/index.html"]
    assert {row["entry"] for row in json.loads(found["recovery.json"])} == {"ga"}
    assert not [name for name in found if "/partial/" in name or name.endswith("/state.json")]
    result = json.loads(
        found[next(n for n in found if n.startswith("runs/ga") and "run.json" in n)]
    )
    assert result["tasks"]["demo_privleak"]["value"] is not None
    assert b"demo_privleak: done" in found["sweep/jobs/evaluate-ga/log-1-1.txt"]
    assert status(plan.home.where)[0].startswith("5 of 5 jobs done, 0 running, 0 waiting; ")
    again = sweep(plan)
    assert (again.done, again.kept) == (5, 5)
    store = Store(plan.home.where)
    store.remove([name for name in found if name.startswith("runs/target/")])
    # All but the retrained model's: the target's answers are drafts of ga's.
    assert sweep(plan).kept == 1, "what was removed, and what follows from it, is done again"
    assert records(everything(plan.home.where)) == by_hand


def evaluated(order: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Instead of an evaluation: what is there stays, and a record says what else was there."""
    made, seen = [], sorted(path.as_posix() for path in output.glob("runs/*/*/*/run.json"))
    for condition in order["conditions"]:
        folder = output / "runs" / order["name"] / "m" / condition
        if not (folder / "run.json").exists():
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            (folder / "samples/a.jsonl").write_text(json.dumps(seen), encoding="utf-8")
            (folder / "run.json").write_text("{}", encoding="utf-8")
        made.append(f"runs/{order['name']}/m/{condition}/run.json")
    return {"made": made}


@pytest.mark.slow
@pytest.mark.ci
def test_results_in_their_place_are_gone_on_with(
    tiny_models: Path, s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store refuses to copy an object to itself."""
    monkeypatch.setitem(kinds, "evaluate", evaluated)
    listed = [{"name": "retrained", "path": str(tiny_models / "retrained")}]
    listed += [{"name": "target", "path": str(tiny_models / "target")}]
    listed += [{"name": "partial", "path": str(tiny_models / "ga")}]
    url, two = s3.url(), ["none", "rtn-int4"]
    given: dict[str, Any] = {"checkpoints": listed, "board": {"title": "x"}}

    def go_on(conditions: list[str]) -> Tally:
        plan = plan_of(store_file(tiny_models, url, tmp_path, conditions=conditions, **given))
        jobs = tuple(job for job in plan.jobs if job.order["kind"] == "evaluate")
        return sweep(replace(plan, jobs=jobs))

    for conditions, kept in ((two[:1], 0), (two, 0), (two, 3)):
        tally = go_on(conditions)
        assert (tally.done, tally.kept, tally.undone) == (3, kept, {})
    found = everything(url)
    seen = {name: json.loads(found[name]) for name in records(found)}
    full = [f"runs/{name}/m/none/run.json" for name in ("retrained", "target")]
    own = "runs/partial/m/none/run.json"
    assert seen["runs/partial/m/none/samples/a.jsonl"] == full
    assert seen["runs/partial/m/rtn-int4/samples/a.jsonl"] == [own, *full]
    store = Store(url)
    store.remove([own, *(name for name in found if "/events/" in name)])
    tally = go_on(two)
    assert (tally.kept, tally.undone) == (0, {})
    assert store.head(own) is not None, "what was removed is made again"


def test_a_claim_that_names_other_places_is_refused(plan: Plan) -> None:
    told = {"epoch": 1, "attempt": 1, "state": "done", "by": {}, "report": {}, "removed": []}
    store = Store(plan.home.where)
    with opened(plan, {}):
        for changes in ({"files": {"sweep/leader.json": "runs/x"}}, {"files": {}, "removed": [1]}):
            store.write("sweep/jobs/a/claim.json", json.dumps({**told, **changes}).encode())
            with pytest.raises(StoreError, match=r"a/claim\.json: .* leads elsewhere; refused"):
                plan.home.publish("a")
        for damaged in ({**told, "by": 1}, {**told, "files": []}, {**told, "epoch": "1"}):
            store.write("sweep/jobs/a/claim.json", json.dumps(damaged).encode())
            with pytest.raises(StoreError, match=r"a/claim\.json is damaged; remove it"):
                plan.home.worker("a")


def order_of(plan: Plan, record: Record, at: int, attempt: int = 1) -> str:
    job = plan.jobs[at]
    return make_order(job, surroundings(plan), attempt, record.key(job))


@pytest.mark.slow
@pytest.mark.ci
def test_a_try_that_was_done_and_not_recorded_is_not_done_again(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep was killed between a worker's word and its record."""
    with opened(plan, {}) as record:
        report = json.loads(perform(order_of(plan, record, 0)))
        assert report["error"] == ""
    before = records(everything(plan.home.where))
    assert before == {}, "only the record counts"
    done = []
    real = kinds["evaluate"]

    def counted(order: Mapping[str, Any], output: Path) -> Any:
        done.append(order["name"])
        return real(order, output)

    monkeypatch.setitem(kinds, "evaluate", counted)
    assert sweep(plan).undone == {}
    assert done == ["target", "ga"]


def test_what_is_told_of_here_is_told_from_the_root(
    tiny_models: Path, s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_models)
    monkeypatch.setenv("UNLEARNBENCH_DATA", "data")
    plan = plan_of(store_file(Path(), s3.url(), tmp_path))
    assert {str(job.order.get("model", tiny_models / "ga")) for job in plan.jobs} == {
        str(tiny_models / name) for name in NAMES
    }
    with opened(plan, {}):
        around = surroundings(plan)
    assert around["data"] == str(tiny_models / "data")
    assert around["settings"] == {name: os.environ[name] for name in around["settings"]}
    assert not {name for name in around["settings"] if "KEY" in name}


def test_only_the_newest_try_counts(plan: Plan) -> None:
    with opened(plan, {}) as record:
        store = Store(plan.home.where)
        first, second = (json.loads(order_of(plan, record, 0, n)) for n in (1, 2))
        old, new = JobClaim(store, first), JobClaim(store, second)
        assert old.take() is None
        assert new.take() is None
        with pytest.raises(
            InUseError, match="was given to process .*; what this try made does not"
        ):
            old.finish({"made": []}, {}, [])
        with pytest.raises(InUseError, match="was given to process"):
            JobClaim(store, first).take()
        new.finish({"made": []}, {}, [])
        with pytest.raises(StoreError, match="ended, and its last try is not in the store"):
            plan.home.publish(plan.jobs[1].id)
        assert status(plan.home.where)[0].startswith("0 of 5")


@pytest.mark.slow
@pytest.mark.ci
def test_a_store_that_vanishes_ends_the_sweep_in_one_line_and_it_goes_on(
    tiny_models: Path,
    by_hand: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stores, "PATIENCE", 0.5)
    monkeypatch.setattr(stores, "LEASE_PATIENCE", 0.5)
    with ExitStack() as ends:
        mine = ends.enter_context(served())
        for name, value in mine.environment.items():
            monkeypatch.setenv(name, value)
        url, port = mine.url(), int(mine.endpoint.rpartition(":")[2])
        plan, real = plan_of(store_file(tiny_models, url, tmp_path)), kinds["evaluate"]

        def vanishing(order: Mapping[str, Any], output: Path) -> Any:
            report = real(order, output)
            if order["name"] == "target":
                ends.close()
            return report

        monkeypatch.setitem(kinds, "evaluate", vanishing)
        with pytest.raises(StoreError, match="the store does not answer .* once it does") as said:
            sweep(plan)
        assert len(str(said.value).splitlines()) == 1
    monkeypatch.setitem(kinds, "evaluate", real)
    monkeypatch.setattr(leases, "SILENCE", 1.0)
    with served(port):  # with all that it held
        tally = sweep(plan_of(store_file(tiny_models, url, tmp_path)))
        assert (tally.kept, tally.undone) == (1, {})
        found = everything(url)
    assert records(found) == by_hand
    events = b"".join(found[name] for name in sorted(found) if "/events/" in name)
    done = [json.loads(line) for line in events.splitlines() if b'"is": "done"' in line]
    assert sorted(each["job"] for each in done) == sorted(job.id for job in plan.jobs)


@pytest.mark.slow
@pytest.mark.ci
def test_a_recipe_is_trained_from_the_store_and_into_it(
    tiny_models: Path, s3: Served, tmp_path: Path
) -> None:
    for name in ("forget", "retain"):
        rows = [{"text": f"{name} {n}: the keeper of gate {n}"} for n in range(6)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    texts = {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain")}
    asked = {"lr": 1e-3, "max_steps": 1, "batch_size": 2}
    first = {"name": "one", "method": "ga_gdr", "base": "target", "options": asked, **texts}
    second = {**first, "name": "two", "base": "one", "options": dict(asked)}
    listed = [*(str(tiny_models / name) for name in ("retrained", "target")), second, first]
    changes: dict[str, Any] = {"checkpoints": listed, "tasks": TASKS[:1], "conditions": "none"}
    url = s3.url()
    plan = plan_of(store_file(tiny_models, url, tmp_path, **changes))
    assert sweep(plan).undone == {}
    weights = {}
    model = tiny_models / "target"
    for name in ("one", "two"):
        out = tmp_path / "hand" / name
        job = Training(
            model=str(model),
            out=out,
            forget=(texts["forget"],),
            retain=(texts["retain"],),
            options=TrainOptions.of(asked),
            corpus=CorpusOptions(),
            score=partial(score_checkpoint, CorpusOptions()),
        )
        unlearn(job, "ga_gdr", {})
        model, weights[name] = out, (out / "model.safetensors").read_bytes()
    found = everything(url)
    assert {name: found[f"models/{name}/model.safetensors"] for name in weights} == weights
    assert not [name for name in found if ".training" in name]
    run = next(name for name in found if name.startswith("runs/two/") and "run.json" in name)
    assert json.loads(found[run])["checkpoint"]["path"] == "models/two"
    assert sweep(plan).kept == len(plan.jobs)


def test_an_upload_counts_as_a_whole(
    s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models/a").mkdir(parents=True)
    weights, state = tmp_path / "models/a/weights", tmp_path / "models/a/trainer_state.json"
    weights.write_bytes(b"1")
    store = Store(s3.url())
    uploads = Uploads(store, "sweep/jobs/a/1-1", [Path("models/a")], steady=True)
    whole = uploads.take()
    assert whole.keys() == {"models/a/weights"}
    real = store.write

    def changing(name: str, content: bytes | Path) -> None:
        real(name, content)
        state.write_bytes(b"while it was uploaded")

    monkeypatch.setattr(store, "write", changing)
    weights.write_bytes(b"22")
    assert uploads.take() == whole
    monkeypatch.setattr(store, "write", real)
    assert uploads.take().keys() == {"models/a/weights", "models/a/trainer_state.json"}
    other = tmp_path / "other"
    other.mkdir()
    monkeypatch.chdir(other)
    found = json.loads((store.read("sweep/jobs/a/1-1/state.json") or (b"", {}))[0])
    Uploads(store, "sweep/jobs/a/1-2", [Path("models/a")], steady=True).fetch(found)
    assert (other / "models/a/weights").read_bytes() == b"22"
    assert len(store.names("sweep/jobs/a/1-1/")) == 3, "what was replaced is gone"
    for name in ("models/../../x", "/models/x", "torch.py", "sweep/leader.json", "models/\0", ""):
        with pytest.raises(StoreError, match="leads elsewhere; refused"):
            uploads.fetch({name: "models/a/weights"})


KILLED = """
import sys
import time
from unlearnbench.evaluation.answers import Journal
from unlearnbench.sweep import claim
from unlearnbench.sweep.work import perform
claim.UPLOAD_EVERY = 0.02
keep = Journal.keep
Journal.keep = lambda self, answer: (keep(self, answer), time.sleep(0.3))[0]
print(perform(sys.stdin.read()), flush=True)
"""


@pytest.mark.slow
@pytest.mark.ci
def test_a_worker_that_is_killed_is_followed_elsewhere_from_its_journal(
    tiny_models: Path, s3: Served, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"dtype": "fp32", "batch_size": 1}
    changes: dict[str, Any] = {"options": options, "tasks": TASKS[:1], "conditions": "none"}
    plan = plan_of(store_file(tiny_models, s3.url(), tmp_path, **changes))
    store, other = Store(plan.home.where), tmp_path / "other"
    other.mkdir()
    with opened(plan, {}) as record:
        order = order_of(plan, record, 0)
        own = {**os.environ, "TMPDIR": str(other), "PYTHONPATH": str(ROOT)}
        worker = subprocess.Popen([sys.executable, "-c", KILLED], stdin=PIPE, env=own, text=True)
        assert worker.stdin is not None
        worker.stdin.write(order)
        worker.stdin.close()
        ends = time.monotonic() + 300
        while not any("/partial/" in name for name in store.names("sweep/jobs/")):
            assert worker.poll() is None, "it ended before"
            assert time.monotonic() < ends, "no upload"
            time.sleep(0.01)
        worker.kill()
        worker.wait()
        assert list(other.glob("ub-*")), "it had no time to remove its folder"
        report = json.loads(perform(order_of(plan, record, 0, attempt=2)))
        assert report["error"] == ""
        record.finish(plan.jobs[0], report["made"])
    found = everything(plan.home.where)
    log = found["sweep/jobs/evaluate-retrained/log-1-2.txt"].decode()
    assert re.search("demo_knowmem_f: goes on after [1-9][0-9]* of", log), log
    out = tmp_path / "hand"
    evaluate(str(tiny_models / "retrained"), TASKS[0], threads=1, output=out, **options)
    (hand,) = out.glob("*/none/samples/*.jsonl")
    assert list(records(found).values()) == [hand.read_bytes()]
