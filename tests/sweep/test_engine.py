from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.sweep.files import NODE, FakePool, Work, plan_of, sweep_file, writes
from unlearnbench.errors import OutputError
from unlearnbench.sweep import engine
from unlearnbench.sweep.engine import Engine, Outcome, Tally
from unlearnbench.sweep.graph import Plan, SweepJob
from unlearnbench.sweep.record import opened, read_standing


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    found = plan_of(sweep_file(tmp_path))
    found.output.mkdir()
    return found


def run(plan: Plan, pool: FakePool, **more: Any) -> Tally:
    with opened(plan, {}) as record:
        return Engine(plan, pool, record, **more).run()


def begun(pool: FakePool) -> list[str]:
    return [id for id, _, _ in pool.begun]


def test_everything_is_done_once_and_in_order_and_not_again(plan: Plan) -> None:
    pool = FakePool(writes(plan))
    progress = run(plan, pool)
    assert begun(pool) == [job.id for job in plan.jobs]
    assert (progress.done, progress.undone, progress.samples) == (6, {}, 18)
    assert pool.most == 2  # two cores, and each job takes one
    later = FakePool(writes(plan))
    again = run(plan, later)
    assert (again.done, again.kept, later.begun) == (6, 6, [])
    assert read_standing(plan.home).count()["done"] == 6


def dies(work: Work, id: str, times: int, again: bool = True) -> Work:
    def found(job: SweepJob, attempt: int) -> Outcome | None:
        if job.id == id and attempt <= times:
            return Outcome("its worker died", again, "node-1")
        return work(job, attempt)

    return found


def test_a_dead_workers_job_is_tried_again_elsewhere(plan: Plan) -> None:
    pool = FakePool(dies(writes(plan), "evaluate-retrained", 2))
    progress = run(plan, pool)
    assert (progress.done, progress.undone) == (6, {})
    assert [b for b in pool.begun if b[0] == "evaluate-retrained"] == [
        ("evaluate-retrained", 1, ""),
        ("evaluate-retrained", 2, "node-1"),
        ("evaluate-retrained", 3, "node-1"),
    ]


def test_tries_are_bounded_and_the_rest_is_complete(plan: Plan) -> None:
    pool = FakePool(dies(writes(plan), "evaluate-ga-1", 99))
    progress = run(plan, pool)
    assert begun(pool).count("evaluate-ga-1") == 3
    assert progress.undone == {"evaluate-ga-1": "its worker died, 3 times"}
    assert progress.done == 5  # compare and board of what there is
    later = FakePool(writes(plan))
    assert run(plan, later).done == 6
    assert begun(later) == ["evaluate-ga-1", "compare", "board"]


def test_what_needs_a_lost_job_is_skipped_by_name(plan: Plan) -> None:
    pool = FakePool(dies(writes(plan), "evaluate-retrained", 99, again=False))
    progress = run(plan, pool)
    assert begun(pool) == ["evaluate-retrained"]
    assert len(progress.undone) == 6
    assert progress.undone["evaluate-ga-1"] == "it needs evaluate-retrained"
    counts = read_standing(plan.home).count()
    assert (counts["failed"], counts["skipped"], counts["waiting"]) == (1, 5, 0)


@pytest.mark.parametrize("name", ["evaluate-ga-1.json", "board.json"])
def test_a_product_that_was_changed_is_made_anew(plan: Plan, name: str) -> None:
    run(plan, FakePool(writes(plan)))
    (plan.output / name).write_text("another", encoding="utf-8")
    pool = FakePool(writes(plan))
    run(plan, pool)
    assert begun(pool) == [name.removesuffix(".json")]


def test_a_checkpoint_that_was_changed_is_evaluated_anew(plan: Plan, tmp_path: Path) -> None:
    run(plan, FakePool(writes(plan)))
    (tmp_path / "models/ga-2/model.safetensors").write_bytes(b"0" * 11)
    pool = FakePool(writes(plan))
    run(plan, pool)
    assert begun(pool) == ["evaluate-ga-2"]


def test_a_file_that_a_job_is_given_decides_too(tmp_path: Path) -> None:
    texts, file = tmp_path / "texts.jsonl", tmp_path / "one.gguf"
    texts.write_text("{}", encoding="utf-8")
    file.write_bytes(b"GGUF")
    trained = {"method": "ga", "base": str(file), "forget": str(texts), "name": "ga"}
    listed = {"checkpoints": [str(file), trained], "references": None}
    plan = plan_of(sweep_file(tmp_path, **listed, options={"calibration": str(texts)}))
    plan.output.mkdir()
    (job, evaluation) = plan.jobs[:2]
    with opened(plan, {}) as record:
        before = record.key(job), record.key(evaluation)
        texts.write_text("{} ", encoding="utf-8")
        changed = record.key(job), record.key(evaluation)
        file.write_bytes(b"GGUF ")
        assert len({*before, *changed, record.key(job), record.key(evaluation)}) == 6


def test_a_job_that_fits_no_node_any_more_is_given_up(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    pool = FakePool(writes(plan))

    def wait(seconds: float) -> Sequence[tuple[str, Outcome]]:
        now[0] += 10
        found = FakePool.wait(pool, seconds)
        if found:
            pool.there = [{"CPU": 0.5, "memory": 2.0**40}]
        return found

    monkeypatch.setattr(pool, "wait", wait)
    progress = run(plan, pool, clock=lambda: now[0])
    assert progress.done == 1
    assert "no node that is left has 1 cores" in progress.undone["evaluate-target"]
    assert now[0] >= engine.PATIENCE


def test_a_small_job_waits_for_its_turn(tmp_path: Path) -> None:
    """Else a large one would never find a whole node."""
    plan = plan_of(sweep_file(tmp_path, resources={"cpus": 1.5}, references=None))
    plan.output.mkdir()
    pool = FakePool(writes(plan), [NODE])
    run(plan, pool)
    assert pool.most == 1
    assert begun(pool) == [job.id for job in plan.jobs]


def test_a_job_that_ends_without_its_files_is_no_success(plan: Plan) -> None:
    pool = FakePool(lambda job, attempt: Outcome(made=("nothing.json",)))
    progress = run(plan, pool)
    assert "nothing.json is not there" in progress.undone["evaluate-retrained"]


def test_a_full_disk_stops_the_record_and_what_was_done_stays_done(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearnbench.util import files

    written = files._write_all
    left = [900]

    def write(descriptor: int, content: bytes) -> None:
        if content.startswith(b'{"t"'):
            left[0] -= len(content)
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        written(descriptor, content)

    monkeypatch.setattr(files, "_write_all", write)
    with pytest.raises(OutputError, match="No space left"):
        run(plan, FakePool(writes(plan)))
    monkeypatch.setattr(files, "_write_all", written)
    done = read_standing(plan.home).count()["done"]
    pool = FakePool(writes(plan))
    assert run(plan, pool).done == 6
    assert 0 < done == 6 - len(pool.begun)


def test_what_is_shown(plan: Plan) -> None:
    said: list[str] = []
    run(
        plan,
        FakePool(dies(writes(plan), "board", 99)),
        show=lambda progress, line: said.append(line),
    )
    lines = [line for line in said if line]
    assert lines[0] == "evaluate-retrained: done in 1.0 s"
    assert lines[-1] == "board: failed: its worker died, 3 times"
    assert json.dumps(lines)
