"""Entries of older formats, and with intervals of the old kind: verify names these, rewrite
replaces both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import ROWS
from tests.boards.test_verify import (
    Edit,
    board,
    forge,
    made_real,
    of_format_1,
    read,
    real,
    run_at,
    small,
    write,
)
from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill
from unlearnbench.boards import read_board
from unlearnbench.boards.entry import is_as_written, read_entry
from unlearnbench.boards.verify import verify_board

__all__ = ["board", "made_real", "real", "small"]
AT = ("none", "rtn-int4", "rtn-int8")
BY_HASH = "the records' hashes of membership attacks could not be recomputed"
OLD = "holds intervals of the old kind, which are not checked: "


def results(board: Path, name: str) -> list[tuple[str, str, dict[str, Any]]]:
    runs = [part["run"] for part in read(board / "entries" / f"{name}.json")["runs"]]
    return [(r["condition"]["name"], task, x) for r in runs for task, x in r["tasks"].items()]


def figures(board: Path, name: str) -> list[dict[str, Any]]:
    found = [result for _, _, result in results(board, name)]
    left_out = ("intervals", "scores", "attacks")
    return [{key: x for key, x in result.items() if key not in left_out} for result in found]


def age(result: dict[str, Any]) -> None:
    """As an older version has it: intervals that are not ours."""
    result.pop("intervals", None)
    old = {"ci": [0.0, 0.0], "auc_ci": [0.0, 0.0], "stderr": 0.0, "auc_stderr": 0.0}
    for part in (result, *result.get("attacks", {}).values()):
        part |= {name: old[name] for name in part.keys() & old.keys()}


def aged(content: dict[str, Any]) -> None:
    for part in content["runs"]:
        for result in part["run"]["tasks"].values():
            age(result)


def said(board: Path, name: str) -> list[str]:
    (verdict,) = (v for v in verify_board(read_board(board))[1] if v.name == name)
    assert (verdict.missing, verdict.problems) == ([], [])
    return verdict.notes


def test_verify_names_what_is_old_in_one_line_and_holds_its_values(board: Path) -> None:
    assert forge(board, aged) == []
    (note,) = said(board, "ga_gdr")
    tasks = "made_knowmem_f, made_knowmem_r, made_privleak"
    assert note.startswith(f"ga_gdr.json {OLD}{tasks} at {', '.join(AT)}; run `unlearnbench")

    def value(content: dict[str, Any]) -> None:
        run_at(content, "rtn-int4")["run"]["tasks"]["made_knowmem_f"]["value"] = 12.5

    def auc(content: dict[str, Any]) -> None:
        attack = run_at(content, "none")["run"]["tasks"]["made_privleak"]["attacks"]["PPL"]
        attack["auc"] = 0.25

    (found,) = forge(board, value)
    assert "rtn-int4: made_knowmem_f: value is 12.5, its samples give" in found
    assert any("none: made_privleak: attacks is" in line for line in forge(board, auc))


def test_a_part_of_an_entry_may_be_old(board: Path) -> None:
    def edit(content: dict[str, Any]) -> None:
        for part in content["runs"]:
            for result in part["run"]["tasks"].values():
                result["intervals"] = "bounded"
        for at, task in (("rtn-int4", "made_privleak"), ("none", "made_knowmem_r")):
            age(run_at(content, at)["run"]["tasks"][task])

    assert forge(board, edit) == []
    (note,) = said(board, "ga_gdr")
    assert f"{OLD}made_knowmem_r at none; made_privleak at rtn-int4; run" in note


@pytest.mark.parametrize(
    ("task", "name", "wrong"),
    [
        ("made_knowmem_f", "ci", [0.0, 0.5]),
        ("made_knowmem_f", "stderr", 0.5),
        ("made_privleak", "auc_ci", [0.0, 0.5]),
        ("made_privleak", "attacks", {}),
    ],
)
def test_a_new_interval_that_its_samples_do_not_give(
    board: Path, task: str, name: str, wrong: Any
) -> None:
    def edit(content: dict[str, Any]) -> None:
        result = run_at(content, "none")["run"]["tasks"][task] | {"intervals": "bounded"}
        result[name] = wrong or {a: x | {"ci": [0, 1]} for a, x in result["attacks"].items()}
        run_at(content, "none")["run"]["tasks"][task] = result

    (found,) = forge(board, edit)
    assert f"none: {task}: {name} is " in found


def test_rewriting_gives_what_the_runs_would(
    board: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every figure is then the one that evaluating the same model now writes."""
    names = sorted(path.stem for path in board.glob("entries/*.json"))
    fresh = {name: figures(board, name) for name in names}
    for name in names:
        write(board, aged, name)
        assert figures(board, name) != fresh[name]
    capsys.readouterr()
    sizes = [path.stat().st_size for path in sorted(board.glob("entries/*.json"))]
    assert call("leaderboard", "rewrite", str(board)) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in out] == [
        str(board / "entries" / f"{name}.json") for name in names
    ]
    assert [line.split(": ")[1].split(" to ")[0] for line in out] == [f"{n:,}" for n in sizes]
    for name in names:
        assert figures(board, name) == fresh[name]
        assert {result["intervals"] for _, _, result in results(board, name)} == {"bounded"}
    _, found = verify_board(read_board(board))
    assert [[*v.missing, *v.problems] for v in found] == [[]] * len(names)
    assert {len(v.notes) for v in found} == {1}  # the other attacks are not there
    before = {path: path.read_bytes() for path in board.rglob("*.*") if path.is_file()}
    assert call("leaderboard", "rewrite", str(board)) == 0
    assert capsys.readouterr().out == "", "there was nothing old"
    assert before == {path: path.read_bytes() for path in board.rglob("*.*") if path.is_file()}


def wrong_value(content: dict[str, Any]) -> None:
    run_at(content, "none")["run"]["tasks"]["made_knowmem_f"]["value"] = 1.5


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("sure", wrong_value, "value is 1.5"),
        ("retrained", lambda c: c.update(role="unlearned"), "needs one retrained entry and has 0"),
    ],
)
def test_rewriting_changes_nothing_where_an_entry_is_wrong(
    board: Path, capsys: pytest.CaptureFixture[str], name: str, edit: Edit, words: str
) -> None:
    write(board, aged)
    write(board, edit, name)
    before = {path: path.read_bytes() for path in board.glob("entries/*")}
    assert call("leaderboard", "rewrite", str(board)) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert before == {path: path.read_bytes() for path in board.glob("entries/*")}
    assert not (board / "README.md").exists()


@pytest.mark.slow
@pytest.mark.ci
def test_privleaks_own_interval_is_against_its_references_records(
    bench: Bench, board: Path, tmp_path: Path
) -> None:
    (retrained,) = bench.out.glob("retrained-*")
    skill = Skill.of(0.1, 0.8, 0.4, n=ROWS)
    for precision in AT:
        at: dict[str, Any] = {"out": tmp_path, "reference": retrained / "none"}
        out = bench.run("again", precision, skill, **at).parent
    ends = ["--board", str(board), "--name", "again"]
    assert call("leaderboard", "add", str(out), *ends) == 0
    fresh = figures(board, "again")
    assert all("ci" in result for result in fresh)
    assert forge(board, aged, "again") == []
    assert call("leaderboard", "rewrite", str(board)) == 0
    assert figures(board, "again") == fresh

    def elsewhere(content: dict[str, Any]) -> None:
        """The retrained model's run of another machine: another AUC, by less than 0.01."""
        aged(content)
        for part in content["runs"]:
            result = part["run"]["tasks"]["made_privleak"]
            auc = result["auc_reference"]["auc"] + 0.001
            result["auc_reference"]["auc"] = auc
            result["value"] = 100 * (result["auc"] - auc) / auc

    assert forge(board, elsewhere, "again") == []
    assert call("leaderboard", "rewrite", str(board)) == 0
    for _, task, result in results(board, "again"):
        assert ("ci" in result) is ("stderr" in result) is (task != "made_privleak")
    assert [note.split(":")[0] for note in said(board, "again")] == [BY_HASH]


@pytest.mark.slow
@pytest.mark.ci
def test_a_stated_reference_counts_as_exact(board: Path) -> None:
    """PrivLeak is affine in the AUC then, and so is its interval."""
    path = board / "tasks/made_privleak.yaml"
    stated = {"base_model": "b", "config": {"a": 1}, "auc": 0.5, "source": "a paper"}
    text = path.read_text(encoding="utf-8")
    path.write_text(f"{text}references: [{json.dumps(stated)}]\n", encoding="utf-8")
    sha256 = read_board(board).registry().tasks["made_privleak"].definition_sha256

    def edit(content: dict[str, Any]) -> None:
        aged(content)
        for part in content["runs"]:
            result = part["run"]["tasks"]["made_privleak"]
            result["task_sha256"] = sha256
            result["auc_reference"] = {"auc": 0.5, "kind": "stated", "source": "b: a paper"}
            result |= {"value": 100 * (result["auc"] - 0.5) / 0.5, "stderr": 0.0, "ci": [0.0, 0.0]}
            part["run"]["tasks"]["made_privleak"] = result

    for file in sorted(board.glob("entries/*.json")):
        write(board, edit, file.stem)
    assert call("leaderboard", "rewrite", str(board)) == 0
    for _, task, result in results(board, "sure"):
        if task == "made_privleak":
            ends = [200 * end - 100 for end in result["auc_ci"]]
            assert result["ci"] == pytest.approx(ends)
            assert result["ci"][0] < result["ci"][1]


@pytest.mark.slow
@pytest.mark.ci
def test_an_entry_of_format_1_becomes_one_of_today(real: Path) -> None:
    path = real / "entries/retrained.json"
    fresh = figures(real, "retrained")
    for file in real.glob("entries/*.json"):
        content = read(file)
        aged(content)
        text = json.dumps(of_format_1(content), indent=1) + "\n"
        file.write_text(text, encoding="ascii")
    assert json.loads(path.read_text(encoding="ascii"))["format_version"] == 1
    assert call("leaderboard", "rewrite", str(real)) == 0
    assert json.loads(path.read_text(encoding="ascii"))["format_version"] == 3
    assert figures(real, "retrained") == fresh
    assert is_as_written(path, read_entry(path))
    assert len(said(real, "retrained")) == 1
