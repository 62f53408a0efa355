from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.files import plan_of, sweep_file
from unlearnbench.errors import InUseError, MemoryShortError
from unlearnbench.evaluation import evaluate as evaluating
from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.sweep import work
from unlearnbench.sweep.graph import Plan
from unlearnbench.sweep.record import job_folder, opened
from unlearnbench.sweep.work import make_order, perform, surroundings
from unlearnbench.util.files import lock_folder

TASKS = ["demo_knowmem_f", "demo_privleak"]


@pytest.fixture
def plan(tiny: Path, tmp_path: Path) -> Plan:
    for name in ("target", "retrained"):
        shutil.copytree(tiny, tmp_path / "models" / name)
    changes: dict[str, Any] = {
        "checkpoints": [str(tmp_path / "models/retrained"), str(tmp_path / "models/target")],
        "options": {"limit": 4, "dtype": "fp32"},
    }
    return plan_of(sweep_file(tmp_path, **changes))


@pytest.fixture
def around(plan: Plan) -> Iterator[dict[str, Any]]:
    """What a driver tells its workers, while it holds the sweep's lock."""
    with opened(plan, {}):
        yield surroundings(plan)


def done(plan: Plan, around: dict[str, Any], at: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(perform(make_order(plan.jobs[at], around, 1)))
    return found


def test_a_job_writes_the_records_of_the_command(
    plan: Plan, around: dict[str, Any], tmp_path: Path
) -> None:
    reports = [done(plan, around, 0), done(plan, around, 1)]
    assert [report["error"] for report in reports] == ["", ""]
    assert reports[1]["samples"] == 2 * (4 + 4)
    own: dict[str, Any] = {"limit": 4, "dtype": "fp32", "output": tmp_path / "by-hand"}
    evaluate(str(tmp_path / "models/retrained"), TASKS, "none,rtn-int4", **own)
    (reference,) = (tmp_path / "by-hand").glob("*/none")
    evaluate(str(tmp_path / "models/target"), TASKS, "none,rtn-int4", reference=reference, **own)
    for made in reports[1]["made"]:
        folder = (plan.output / made).parent
        for task in TASKS:
            ours = (folder / f"samples/{task}.jsonl").read_bytes()
            theirs = reference.parent.parent / folder.parent.name / folder.name
            assert ours == (theirs / f"samples/{task}.jsonl").read_bytes()
    result = json.loads((plan.output / reports[1]["made"][0]).read_bytes())
    assert result["tasks"]["demo_privleak"]["value"] is not None  # against the retrained run
    log = (job_folder(plan.output, "evaluate-target") / "log.txt").read_text(encoding="utf-8")
    assert "try 1 on" in log
    assert "demo_privleak: done" in log


def test_answers_of_the_references_are_drafts(
    plan: Plan, around: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[Any] = []
    whole = evaluating.evaluate

    def watch(model: Any, tasks: Any, conditions: Any, asked: Any) -> Any:
        known.append([path.relative_to(plan.output / "runs").parts for path in asked.drafts_from])
        return whole(model, tasks, conditions, asked)

    monkeypatch.setattr(evaluating, "evaluate", watch)
    assert [done(plan, around, at)["error"] for at in (0, 1)] == ["", ""]
    first, second = known
    assert first == []
    assert [(name, condition) for name, _, condition in second] == [("retrained", "none")]


def fails_with(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(evaluating, "evaluate", fail)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (MemoryShortError("out of memory"), True),
        (MemoryError(), True),
        (InUseError("in use"), True),
        (ValueError("a bug"), False),
    ],
)
def test_only_what_may_end_otherwise_is_tried_again(
    error: Exception,
    again: bool,
    plan: Plan,
    around: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fails_with(error, monkeypatch)
    report = done(plan, around, 0)
    assert report["again"] is again
    assert str(error) in report["error"]
    log = (job_folder(plan.output, "evaluate-retrained") / "log.txt").read_text(encoding="utf-8")
    assert "Traceback" in log


def test_a_worker_of_another_package_or_storage_does_nothing(
    plan: Plan, around: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "another unlearnbench" in done(plan, {**around, "source": "x"}, 0)["error"]
    assert "is not the sweep's" in done(plan, {**around, "token": "x"}, 0)["error"]
    assert not (plan.output / "runs").exists()


def test_storage_whose_locks_do_not_reach_a_worker_is_refused(plan: Plan) -> None:
    with opened(plan, {}):
        around = surroundings(plan)
    report = done(plan, around, 0)  # the driver's lock is gone, as if it were another host's
    assert "has no locks that reach" in report["error"]


def test_a_worker_that_is_believed_dead_keeps_the_next_out(
    plan: Plan, around: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "_LOCK_PATIENCE", 0.1)
    with lock_folder(job_folder(plan.output, "evaluate-retrained")):
        report = done(plan, around, 0)
    assert report["again"]
    assert "is being written by process" in report["error"]


def test_half_a_task_of_another_machine_is_begun_anew(
    plan: Plan, around: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done(plan, around, 0)
    (run,) = (plan.output / "runs/retrained").glob("*/none")
    header = {"journal": 2, "facts": {"device name": "another"}}
    from unlearnbench.evaluation.answers import _checksum

    header["sum"] = _checksum("", header)
    (run / "run.json").unlink()
    (run / "partial").mkdir()
    journal = run / "partial/demo_knowmem_f.jsonl"
    journal.write_text(json.dumps(header) + "\n", encoding="ascii")
    report = done(plan, around, 0)
    assert report["error"] == ""
    assert not journal.exists()
    log = (job_folder(plan.output, "evaluate-retrained") / "log.txt").read_text(encoding="utf-8")
    assert "begun anew" in log


def test_a_training_of_another_order_is_not_taken_for_this_one(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("{}", encoding="utf-8")
    trained = []

    def unlearn(job: Any, method: str, knobs: object) -> None:
        trained.append(job.options.lr)
        job.out.mkdir(parents=True)
        (job.out / "unlearning.json").write_text("{}", encoding="ascii")

    monkeypatch.setattr("unlearnbench.training.job.unlearn", unlearn)

    def tried(lr: float) -> str:
        recipe = {"method": "ga", "base": str(tiny), "forget": str(texts), "options": {"lr": lr}}
        plan = plan_of(sweep_file(tmp_path, checkpoints=[recipe], references=None))
        with opened(plan, {}):
            return str(done(plan, surroundings(plan), 0)["error"])

    assert [tried(1e-5), tried(1e-5)] == ["", ""]
    assert "was trained by another order" in tried(1e-4)
    assert tried(1e-5) == ""
    texts.write_text("{} ", encoding="utf-8")
    assert "on other files than now; remove it" in tried(1e-5)
    assert trained == [1e-5]


def test_an_order_that_does_nothing_costs_nothing() -> None:
    assert json.loads(perform('{"kind": "nothing"}'))["error"] == ""
