from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.sweep.files import checkpoint, plan_of, sweep_file
from unlearnbench.errors import OptionError, TaskError, UnlearnbenchError
from unlearnbench.sweep import graph
from unlearnbench.sweep.graph import Plan

GRID = {
    "method": ["ga_gdr", "npo_gdr"],
    "base": "target",
    "forget": "task:demo_knowmem_f",
    "retain": "task:demo_knowmem_r",
    "options": {"lr": [1e-5, 2e-5], "max-steps": 3},
    "seeds": [0, 1, 2],
}


def ids(plan: Plan) -> list[str]:
    return [job.id for job in plan.jobs]


def test_references_come_first_and_compare_and_board_last(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path))
    assert ids(plan) == [
        *("evaluate-retrained", "evaluate-target", "evaluate-ga-1", "evaluate-ga-2"),
        *("compare", "board"),
    ]
    jobs = {job.id: job for job in plan.jobs}
    assert jobs["evaluate-retrained"].needs == ()
    assert jobs["evaluate-retrained"].order["reference"] is None
    assert jobs["evaluate-ga-1"].needs == ("evaluate-retrained",)
    assert jobs["evaluate-ga-1"].order["conditions"] == ["none", "rtn-int4"]
    assert jobs["evaluate-ga-1"].after == ("evaluate-target",)
    assert jobs["evaluate-ga-1"].order["drafts_from"] == ["retrained", "target"]
    assert jobs["evaluate-target"].after == jobs["evaluate-retrained"].after == ()
    assert jobs["evaluate-target"].order["drafts_from"] == ["retrained"]
    assert set(jobs["compare"].needs) == {"evaluate-target", "evaluate-retrained"}
    assert set(jobs["compare"].after) == {"evaluate-ga-1", "evaluate-ga-2"}
    assert jobs["board"].order["rules"]["ranking"] == ["demo_knowmem_f", "demo_privleak"]
    assert plan.cells == 4 * 2 * 2


def test_nothing_waits_for_a_reference_that_no_task_reads(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path, tasks=["demo_knowmem_f"]))
    evaluations = [job for job in plan.jobs if job.order["kind"] == "evaluate"]
    assert all(not job.needs and not job.after for job in evaluations)


def test_a_grid_is_every_combination_behind_its_base(tmp_path: Path) -> None:
    base = {"name": "mid", "method": "finetune", "base": "target", "data": "f.jsonl"}
    recipe = {**GRID, "base": ["mid", "target"]}
    listed = [str(tmp_path / "models/*"), recipe, base]
    plan = plan_of(sweep_file(tmp_path, checkpoints=listed))
    trained = [job for job in plan.jobs if job.order["kind"] == "train"]
    assert len(trained) == 2 * 2 * 2 * 3 + 1
    jobs = {job.id: job for job in plan.jobs}
    one = jobs["train-ga_gdr-basemid-lr2e-05-seed1"]
    assert one.order["options"] == {"lr": 2e-5, "max_steps": 3, "seed": 1}
    assert one.needs == ("train-mid",)
    assert one.order["model"] == str(tmp_path / "out/models/mid")
    assert jobs["train-ga_gdr-basetarget-lr2e-05-seed1"].needs == ()
    place = {id: at for at, id in enumerate(ids(plan))}
    assert all(place[need] < place[job.id] for job in plan.jobs for need in job.needs)
    behind = jobs["evaluate-ga_gdr-basemid-lr2e-05-seed1"].needs
    assert set(behind) == {one.id, "evaluate-retrained"}


def test_conditions_are_split_over_workers_where_asked(tmp_path: Path) -> None:
    plan = plan_of(sweep_file(tmp_path, resources={"conditions_a_job": 1}))
    jobs = {job.id: job for job in plan.jobs}
    assert jobs["evaluate-ga-1"].order["conditions"] == ["none"]
    assert jobs["evaluate-ga-1.2"].order["conditions"] == ["rtn-int4"]
    assert "evaluate-target.2" in jobs["compare"].after


def circle(tmp_path: Path) -> list[Any]:
    made = {"method": "finetune", "data": "f.jsonl"}
    return [
        *({"name": "a", "base": "c", **made}, {"name": "b", "base": "a", **made}),
        {"name": "c", "base": "b", **made},
    ]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"checkpoints": ["models/none*"]}, r":3: models/none\* matches no checkpoint$"),
    ({"checkpoints": ["no/such/folder"]}, ":3: no/such/folder is not there, and no hub id"),
    ({"references": {"target": "who"}}, r":11: target: no checkpoint is called who; there are ga"),
    ({"references": {"target": "ga-1", "retrained": "ga-1"}}, "are one checkpoint"),
    ({"conditions": ["rtn-int4"]}, "references need the condition none"),
    ({"checkpoints": [{**GRID, "method": "npo2"}]}, ":3: .*npo2"),
    ({"checkpoints": [{**GRID, "options": {"lrr": 1}}]}, "lrr"),
    ({"checkpoints": [{**GRID, "options": {"lr": -1}}]}, "--lr -1: use a number above 0"),
    ({"checkpoints": [{**GRID, "options": {"lr": []}}]}, "an option has no value"),
    ({"checkpoints": [{**GRID, "base": "no/such/base"}]}, "no checkpoint here, no path"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=lambda part: str(part)[:40])
def test_what_is_not_there_is_said_with_its_line(
    changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    if "checkpoints" in changes and "references" not in changes:
        changes = {**changes, "references": None}
    with pytest.raises((OptionError, TaskError), match=said):
        plan_of(sweep_file(tmp_path, **changes))


def test_trainings_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r":\d+: a circle of trainings: a <- c <- b <- a"):
        plan_of(sweep_file(tmp_path, checkpoints=circle(tmp_path), references=None))


def test_two_checkpoints_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = [str(tmp_path / "models/ga-1"), str(checkpoint(tmp_path / "more/ga-1"))]
    with pytest.raises(UnlearnbenchError, match=r":4: two checkpoints are called ga-1 .*:3\)"):
        plan_of(sweep_file(tmp_path, checkpoints=twice, references=None))


def test_a_grid_of_any_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "MOST", 10)
    many = [n / 10_000 for n in range(1, 1_000)]
    grid = {**GRID, "base": "org/model", "options": {"lr": many, "epochs": [*many]}}
    with pytest.raises(OptionError, match=r":3: with it there are more than 10 checkpoints"):
        plan_of(sweep_file(tmp_path, checkpoints=[grid], references=None))


def test_many_jobs_are_expanded_each_once(tmp_path: Path) -> None:
    grid = {**GRID, "seeds": list(range(125))}
    plan = plan_of(sweep_file(tmp_path, checkpoints=[str(tmp_path / "models/*"), grid]))
    assert len(plan.jobs) == 2 * 4 * 125 + 4 + 2 == len(set(ids(plan)))
    assert len(plan.lines()) < 40
