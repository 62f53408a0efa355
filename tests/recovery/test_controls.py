from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from tests.cli.test_main import call
from tests.recovery.test_compare import edit, folder, references, rows_of
from tests.recovery.test_policy import check
from tests.toy_runs import Bench, Skill, few_draws
from unlearnbench import conditions
from unlearnbench.boards import read_board
from unlearnbench.boards.entry import Submission, add_entry, read_entry
from unlearnbench.boards.ranking import rank_entries
from unlearnbench.boards.verify import verify_board
from unlearnbench.recovery.controls import needs_control

AT = "relearn-20"
F = "made_knowmem_f"


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


def skill(forget: float, gap: float, seed: int = 0) -> Skill:
    return Skill.of(forget, 0.85, gap, n=100, seed=seed)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Relearning teaches the retrained model a little. ``hidden`` comes back by more, ``taught`` by
    as little, ``gone`` by nothing.
    """
    made = Bench(tmp_path_factory.mktemp("control"), n=100)
    knows, hides = skill(0.9, 4), skill(0.1, -0.2)
    made.model("target", none=knows, int8=knows, relearn=skill(0.95, 4.2))
    made.model("retrained", none=skill(0.12, 0.0, 1), relearn=skill(0.3, 0.5, 1))
    made.model("hidden", none=hides, int8=hides, relearn=skill(0.8, 3.5))
    made.model("taught", none=hides, int8=hides, relearn=skill(0.3, 0.4))
    made.model("gone", none=hides, int8=hides, relearn=skill(0.11, -0.2))
    return made


def scores(bench: Bench, name: str, at: str) -> NDArray[np.float64]:
    file = folder(bench, name) / at / "samples" / f"{F}.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    return 100 * np.array([json.loads(line)["score"] for line in lines])


def test_only_what_the_control_does_not_gain_counts(bench: Bench, tmp_path: Path) -> None:
    rows = rows_of(bench, tmp_path, "hidden", "taught", "gone")
    before, after = scores(bench, "hidden", "none"), scores(bench, "hidden", AT)
    control = scores(bench, "retrained", AT) - scores(bench, "retrained", "none")
    net, gap = after - before - control, scores(bench, "target", AT) - before
    row = rows["hidden", F, AT]
    assert row["change"] == pytest.approx((after - before).mean())
    assert row["taught"] == pytest.approx(control.mean())
    assert row["net"] == pytest.approx(net.mean())
    assert row["recovered"] == pytest.approx(net.mean() / gap.mean())
    assert row["excess"] == pytest.approx((after - scores(bench, "retrained", AT)).mean())
    # One resample of the questions for all four models: a plain bootstrap, written again.
    rng = np.random.default_rng(3)
    draws = rng.multinomial(len(net), np.full(len(net), 1 / len(net)), 20000)
    ends = np.quantile((draws @ net) / (draws @ gap), [0.025, 0.975])
    low, high = row["recovered_ci"]  # wider, for the sample that was not seen
    assert ends[0] - 0.05 < low < ends[0]
    assert ends[1] < high < ends[1] + 0.05
    dense = rows["hidden", F, "rtn-int8"]
    assert not {"taught", "net"} & set(dense)


def test_verdicts(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(bench, tmp_path, "hidden", "taught", "gone")
    found = {name: rows[name, F, AT]["verdict"] for name in ("hidden", "taught", "gone")}
    assert found == {"hidden": "recovers", "taught": "the attack teaches", "gone": "forgets"}
    assert rows["hidden", "made_privleak", AT]["verdict"] == "recovers"
    assert rows["taught", "made_privleak", AT]["taught"] < 0
    assert "gains most of it" in capsys.readouterr().out
    assert rows["hidden", F, "rtn-int8"]["verdict"] == "forgets"


@pytest.fixture
def without(bench: Bench, tmp_path: Path) -> list[str]:
    """References of which the retrained model has no control."""
    alone = folder(bench, "retrained") / "none"
    return ["--target", str(folder(bench, "target")), "--retrained", str(alone)]


def test_a_missing_control_is_refused(
    bench: Bench, without: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("tasks: [made_knowmem_f]\nprecisions: [int8]\nmax_recovered: 0.3\n")
    runs = str(folder(bench, "hidden"))
    for command in (["compare", runs], ["check", runs, "--policy", str(policy)]):
        assert call(*command, *without) == 2
        err = capsys.readouterr().err
        assert f"{AT} needs a control" in err
        assert f"--conditions {AT}" in err
        assert "Traceback" not in err
    precise = str(folder(bench, "hidden") / "rtn-int8")
    assert call("compare", precise, str(folder(bench, "hidden") / "none"), *without) == 0


def test_a_control_made_otherwise_is_refused(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder(bench, "retrained") / AT / "run.json"
    text = path.read_text(encoding="utf-8")
    content = json.loads(text)
    content["condition"]["options"]["lr"] = 0.5
    try:
        path.write_text(json.dumps(content), encoding="utf-8")
        assert call("compare", str(folder(bench, "hidden")), *references(bench)) == 2
        assert "option lr is" in capsys.readouterr().err
    finally:
        path.write_text(text, encoding="utf-8")


def test_which_conditions_need_one() -> None:
    every = ["none", "bnb-nf4", "prune-magnitude-30", "noise-5", "prune-wanda-50+nf4", "future"]
    assert [name for name in every if needs_control(name)] == []
    every = ["relearn-5", "relearn-lora-5", "relearn-5+nf4", "merge-0.5", "merge-0.5+int4"]
    assert [name for name in every if needs_control(name)] == every


def test_a_policy_bounds_each_condition(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy: dict[str, Any] = {"tasks": [F], "precisions": ["none", "int8", AT]}

    def status(name: str, bounds: object) -> int:
        return check(bench, name, yaml.safe_dump({**policy, "max_recovered": bounds}))

    assert status("hidden", 0.2) == 1
    assert status("hidden", {"int8": 0.2}) == 0  # by an alias
    assert status("hidden", {"int8": 0.2, AT: 0.9}) == 0
    assert status("hidden", {"int8": 0.2, AT: 0.3}) == 1
    assert f"{AT}" in capsys.readouterr().out
    for wrong in ({"relearn-7": 0.2}, {"none": 0.2}):
        assert status("hidden", wrong) == 2
        assert "which is not among its precisions" in capsys.readouterr().err
    assert status("hidden", {AT: -1}) == 2


def test_a_certificate_rests_on_the_controls_too(bench: Bench, tmp_path: Path) -> None:
    policy: dict[str, Any] = {"tasks": ["made_*"], "precisions": ["none", "int8", AT]}
    policy |= {
        "max_excess": 20,
        "max_privleak": 150,
        "min_utility": 0.5,
        "max_recovered": {"int8": 0.3, AT: 0.3},
    }
    file = tmp_path / "certificate.json"
    assert check(bench, "gone", yaml.safe_dump(policy), "--certify", str(file)) == 0
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["conditions"] == ["none", "rtn-int8", AT]
    evidence = {(e["role"], e["condition"]) for e in content["evidence"]}
    assert ("retrained", AT) in evidence
    assert ("retrained", "rtn-int8") not in evidence
    ends = ["--verify-certificate", str(file), *references(bench)]
    assert call("check", str(folder(bench, "gone")), *ends) == 0


def test_a_board_without_the_control_is_incomplete(bench: Bench, tmp_path: Path) -> None:
    rules: dict[str, Any] = {"title": "Made", "base_model": "none", "precisions": ["none", AT]}
    rules |= {"tasks": {F: 1.0, "made_knowmem_r": 1.0}, "ranking": [F], "utility_floor": 0.5}
    (tmp_path / "tasks").mkdir()
    for name in (F, "made_knowmem_r"):
        text = (bench.tasks / f"{name}.yaml").read_text(encoding="utf-8")
        (tmp_path / "tasks" / f"{name}.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "board.yaml").write_text(yaml.safe_dump(rules), encoding="utf-8")
    board = read_board(tmp_path)

    def add(name: str, role: Any, at: list[str]) -> None:
        runs = [folder(bench, name) / each for each in at]
        add_entry(board, runs, Submission(name, role, texts=False))

    add("target", "target", ["none", AT])
    add("hidden", "unlearned", ["none", AT])
    add("gone", "unlearned", ["none", AT])
    states = {}
    for at in (["none"], ["none", AT]):
        add("retrained", "retrained", at)
        entries = [read_entry(path) for path in sorted(board.entries.glob("*.json"))]
        ranking = rank_entries(board, entries)
        states[len(at)] = {place.name: place.state for place in ranking.places}
        problems = {v.name: v.problems for v in verify_board(board)[1]}["retrained"]
        assert any(f"no run at {AT}" in line for line in problems) == (at == ["none"])
    said = f"incomplete: no control at {AT}"
    assert states[1] == {"hidden": said, "gone": said}
    assert states[2] == {"hidden": "ranked", "gone": "ranked"}
    best, worst = ranking.places
    assert (best.name, worst.name) == ("gone", "hidden")
    assert worst.rows[F, AT].verdict == "recovers"
    assert worst.worst is not None
    over = scores(bench, "hidden", AT) - scores(bench, "retrained", AT)
    assert worst.worst.value == pytest.approx(over.mean())


def test_a_task_that_a_condition_leaves_as_it_is_is_not_checked_there(
    bench: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its plain value would pass every rule."""
    rules = {"precisions": ["none", AT], "max_recovered": {AT: 0.2}}
    both = yaml.safe_dump({"tasks": [F, "made_privleak"], **rules})
    alone = yaml.safe_dump({"tasks": [F], **rules})
    (run,) = bench.out.glob(f"hidden-*/{AT}")
    before = (run / "run.json").read_bytes()
    try:
        assert check(bench, "hidden", both) == 1
        capsys.readouterr()
        edit(run, "tasks", F, "unchanged", value=True)
        assert check(bench, "hidden", both) == 2
        assert f"says that {AT} leaves {F} as it is, which it cannot" in capsys.readouterr().err
        # One that is put to some tasks only may say so.
        spec = replace(conditions.find_condition(AT), asks=True)
        monkeypatch.setattr("unlearnbench.recovery.controls.find_condition", lambda _: spec)
        check(bench, "hidden", both)
        lines = capsys.readouterr().out.splitlines()
        assert not [line for line in lines if F in line and AT in line]
        assert [line for line in lines if "made_privleak" in line and AT in line]
        assert check(bench, "hidden", alone) == 2
        assert f"{AT} changes how none of {F} is asked" in capsys.readouterr().err
    finally:
        (run / "run.json").write_bytes(before)
