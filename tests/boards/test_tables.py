from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.boards.conftest import BOARD, NAMES, MakeBoard
from tests.boards.test_verify import read
from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill, weak_at_4_bits
from unlearnbench.boards import find_boards, read_board
from unlearnbench.boards.entry import BoardEntry, entry_json
from unlearnbench.boards.ranking import Place, _mark, rank_entries
from unlearnbench.boards.tables import cell, verdicts
from unlearnbench.boards.verify import verify_board
from unlearnbench.recovery.verdicts import RecoveryRow
from unlearnbench.runs.folder import read_run

FILES = ("README.md", "board.csv", "index.html")


@pytest.fixture(scope="module")
def built(made_board: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    board: Path = shutil.copytree(made_board, tmp_path_factory.mktemp("built") / "made")
    assert call("leaderboard", "build", str(board)) == 0
    return board


def test_build_writes_the_same_bytes_again(make_board: MakeBoard) -> None:
    board = make_board(names=("target", "retrained", "sure"))
    assert call("leaderboard", "build", str(board)) == 0
    before = {name: (board / name).read_bytes() for name in FILES}
    assert call("leaderboard", "build", str(board.parent)) == 0
    assert before == {name: (board / name).read_bytes() for name in FILES}


def value(bench: Bench, name: str, precision: str, task: str = "made_knowmem_f") -> float:
    (folder,) = bench.out.glob(f"{name}-*")
    found = read_run(folder / precision).tasks[task].value
    assert found is not None
    return found


def test_entries_rank_by_their_worst_excess_and_collapse_is_never_ranked(
    built: Path, bench: Bench
) -> None:
    board = read_board(built)
    standings = rank_entries(board, verify_board(board)[0])
    ranks = {p.entry.name: (p.rank, p.state) for p in standings.places}
    assert ranks == {
        "sure": (1, "ranked"),
        "npo": (2, "ranked"),
        "ga_gdr": (3, "ranked"),
        "broken": (None, "collapsed"),
    }
    zero = value(bench, "retrained", "none")
    for place in standings.places:
        name = place.entry.name
        worst = max(value(bench, name, p) - zero for p in board.rules.precisions)
        assert place.worst is not None
        assert place.worst.value == pytest.approx(worst)
    # Mean over the three ranked entries of value / target's value, by hand.
    for precision in board.rules.precisions:
        shares = [
            value(bench, n, precision) / value(bench, "target", precision)
            for n in ("sure", "npo", "ga_gdr")
        ]
        found = standings.shares[precision].retained
        assert found.value == pytest.approx(sum(shares) / 3)
        assert found.ci is not None
        assert found.ci[0] < found.value < found.ci[1]


def test_a_control_is_shown_and_counts_for_no_rank_mean_or_correction(
    built: Path, bench: Bench, tmp_path: Path
) -> None:
    board: Path = shutil.copytree(built, tmp_path / "made")
    before = rank_entries(read_board(board), verify_board(read_board(board))[0])
    (runs,) = bench.out.glob("ga_gdr-*")
    words = ("--board", str(board), "--name", "ga_gdr", "--role", "control")
    assert call("leaderboard", "add", str(runs), *words) == 0
    assert call("leaderboard", "build", str(board)) == 0
    after = rank_entries(read_board(board), verify_board(read_board(board))[0])
    assert [(p.name, p.position) for p in after.places] == [
        ("sure", "1 (1 to 1)"),
        ("npo", "2 (1 to 2)"),
        ("broken", "collapsed"),
        ("ga_gdr", "control"),
    ]
    (theirs,) = (p for p in before.places if p.name == "ga_gdr")
    ours = after.places[-1]
    assert ours.worst == theirs.worst
    verdicts_of = [{at: row.verdict for at, row in p.rows.items()} for p in (ours, theirs)]
    assert verdicts_of[0] == verdicts_of[1], "it is judged as others are"
    assert (before.cells, after.cells) == ((3, 3), (2, 2))
    tested = [int(ranking.held.split()[1]) for ranking in (before, after)]
    assert tested[0] - tested[1] == 4, "two tasks at two precisions"
    assert "nor is a control" in (board / "README.md").read_text(encoding="utf-8")
    assert {row["state"] for row in csv_rows(board).values()} >= {"control", "ranked"}


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The board of ``weak_at_4_bits``."""
    root = tmp_path_factory.mktemp("weak")
    board = add_all(root / "board", weak_at_4_bits(root))
    assert call("leaderboard", "verify", str(board)) == 0
    assert call("leaderboard", "build", str(board)) == 0
    return board


def test_no_share_at_a_precision_that_makes_the_target_itself_forget(weak: Path) -> None:
    found = read_board(weak)
    ranking = rank_entries(found, verify_board(found)[0])
    # The same cells at every precision, so none of the two: at int4 the target itself forgets.
    assert (ranking.shares, ranking.cells) == ({}, (0, 2))
    said = "over the 2 pairs of a ranked entry and a forget task there is none where"
    assert said in (weak / "README.md").read_text(encoding="utf-8")
    rows = csv_rows(weak)
    cell = rows["ga_gdr", "made_knowmem_f", "rtn-int4"]
    assert cell["verdict"] == "target forgets"
    assert (cell["recovered"], cell["recovered_low"], cell["retained"]) == ("", "", "")
    assert cell["change"] != ""
    assert rows["ga_gdr", "made_knowmem_f", "rtn-int8"]["recovered"] != ""


def test_the_table_says_what_made_the_entries_and_where_they_were_measured(
    made_board: Path, tmp_path: Path, bench: Bench
) -> None:
    board: Path = shutil.copytree(made_board, tmp_path / "made")
    rules = board / "board.yaml"
    long = "It is described at length. " * 30
    lines = [x for x in rules.read_text().splitlines() if not x.startswith("description:")]
    rules.write_text("\n".join([*lines, f"description: {long}"]), encoding="utf-8")
    (runs,) = bench.out.glob("sure-*")
    note = ["--name", "sure", "--note", "lr 1e-3 | <b>top</b> 5%"]
    assert call("leaderboard", "add", str(runs), "--board", str(board), *note) == 0
    assert call("leaderboard", "build", str(board)) == 0
    text = (board / "README.md").read_text(encoding="utf-8")
    assert long.strip() in text
    assert "- sure: lr 1e-3 &#124; &lt;b&gt;top&lt;/b&gt; 5%\n" in text
    assert "- npo\n" in text
    runs_made = [read_run(path.parent) for path in bench.out.glob("*/*/run.json")]
    threads = {run.environment.threads for run in runs_made}  # those that this process has
    for number in threads:
        assert f"fp32, {number} thread{'s' if number > 1 else ''}; unlearnbench " in text
    assert text.count(f"Python {sys.version.split()[0]}") == len(threads)  # not for each run


def test_every_machine_that_a_task_was_measured_on_is_named(
    made_board: Path, tmp_path: Path
) -> None:
    board: Path = shutil.copytree(made_board, tmp_path / "made")
    path = board / "entries" / "sure.json"
    content = read(path)
    content["runs"][0]["run"]["tasks"]["made_knowmem_r"]["environment"]["threads"] = 77
    content["runs"][0]["run"]["environment"]["threads"] = 78  # of a task that is not the board's
    path.write_text(entry_json(BoardEntry.model_validate(content)), encoding="ascii")
    assert call("leaderboard", "build", str(board)) == 0
    text = (board / "README.md").read_text(encoding="utf-8")
    assert "fp32, 77 threads; unlearnbench " in text
    assert "78 threads" not in text


def test_the_references_scores_are_shown_and_not_ranked(weak: Path) -> None:
    rows = csv_rows(weak)
    own = {at: row for at, row in rows.items() if at[0] in ("target", "retrained")}
    assert len(own) == 3 * 4 + 3 * 1
    text = (weak / "README.md").read_text(encoding="utf-8")
    (line,) = [x for x in text.splitlines() if x.startswith("| target | made&#95;knowmem&#95;f |")]
    for number, precision in enumerate(("none", "rtn-int8", "rtn-int4", "gptq-int4-g128")):
        run = next((weak.parent / "out").glob("target-*")) / precision
        value = read_run(run).tasks["made_knowmem_f"].value
        row = own["target", "made_knowmem_f", precision]
        assert float(row["value"]) == pytest.approx(value)
        assert float(row["value_low"]) < float(row["value"]) < float(row["value_high"])
        assert (row["rank"], row["state"], row["recovered"]) == ("", "target", "")
        assert line.split(" | ")[2 + number].startswith(f"{value:.1f} [")
        assert (row["verdict"] == "target forgets") is (precision == "rtn-int4")
        assert ("forgets" in line.split(" | ")[2 + number]) is (precision == "rtn-int4")
    assert own["retrained", "made_knowmem_f", "none"]["excess"] == "0"
    assert "| retrained | made&#95;privleak | 0.0" in text


def test_a_precision_that_the_board_does_not_ask_for_is_shown_and_does_not_count(
    weak: Path,
) -> None:
    rows = csv_rows(weak)
    other = rows["ga_gdr", "made_knowmem_f", "gptq-int4-g128"]
    assert (other["required"], other["verdict"]) == ("false", "recovers")
    assert ("npo", "made_knowmem_f", "gptq-int4-g128") not in rows
    found = read_board(weak)
    places = {p.entry.name: p for p in rank_entries(found, verify_board(found)[0]).places}
    worst, standings = places["ga_gdr"].worst, places["ga_gdr"].standings
    assert worst is not None
    assert worst.value < standings["made_knowmem_f", "gptq-int4-g128"].excess.value
    assert places["ga_gdr"].worst_at == "made_knowmem_f at rtn-int4"
    assert [p.rank for p in places.values()] == [1, 2]
    text = (weak / "README.md").read_text(encoding="utf-8")
    assert "| ga&#95;gdr | made&#95;knowmem&#95;f | gptq-int4-g128 |" in text
    assert '["gptq-int4-g128",false,"gptq"]' in (weak / "index.html").read_text(encoding="utf-8")
    place = places["ga_gdr"]
    further = place.rows["made_knowmem_f", "gptq-int4-g128"]
    assert further.p is not None
    assert further.significant, "tested apart from the board's family"
    ranks = text.split("| rank |")[1].split("No mean share")[0]
    assert "recovers: made&#95;knowmem&#95;f" not in ranks
    assert "gptq" not in ranks


def test_what_an_entry_has_beyond_the_board_moves_nobodys_significance() -> None:
    def row(p: float, precision: str) -> RecoveryRow:
        return RecoveryRow.model_construct(
            task="t", precision=precision, want="low", p=p, verdict="not decided"
        )

    own = [row(p, "rtn-int4") for p in (0.004, *[0.9] * 11)]
    rules = SimpleNamespace(precisions=["none", "rtn-int4"])
    for further in ([], [row(0.001, "rtn-int3") for _ in range(24)]):
        rows = {(f"t{i}", r.precision): r for i, r in enumerate([*further, *own])}
        place = Place("a", (), "ranked", {}, rows)
        (marked,) = _mark(rules, [place])  # type: ignore[arg-type]
        assert [*marked.rows] == [*place.rows]
        found = [r.significant for at, r in marked.rows.items() if at[1] == "rtn-int4"]
        assert found == [True, *[False] * 11]
        assert all(r.significant for at, r in marked.rows.items() if at[1] == "rtn-int3")


def test_the_verdicts_of_a_line_are_of_all_its_rows() -> None:
    def row(verdict: str, precision: str = "rtn-int4") -> RecoveryRow:
        return RecoveryRow.model_construct(task="t", precision=precision, verdict=verdict)

    def said(*each: str) -> str:
        rows = {(f"t{i}", "rtn-int4"): row(verdict) for i, verdict in enumerate(each)}
        rows["t", "other"] = row("recovers", "other")
        place = Place("a", (), "ranked", {}, rows)
        return verdicts(place, ["rtn-int4"])

    assert said("forgets", "holds") == "nothing recovers"
    assert said("forgets", "target forgets") == "1 target forgets"
    assert said("had not forgotten") == "1 had not forgotten"
    assert said("not decided", "target forgets", "not decided") == "2 not decided, 1 target forgets"
    assert said("collapsed") == "1 collapsed"
    assert said("target forgets", "recovers") == "recovers: t at rtn-int4"


def add_all(board: Path, bench: Bench) -> Path:
    """A board with every model of ``bench``."""
    board.mkdir()
    (board / "board.yaml").write_text(BOARD, encoding="utf-8")
    shutil.copytree(bench.tasks, board / "tasks")
    for runs in sorted(bench.out.iterdir()):
        name = runs.name.rsplit("-", 1)[0]
        role = name if name in ("target", "retrained") else "unlearned"
        ends = ["--board", str(board), "--name", name, "--role", role]
        assert call("leaderboard", "add", str(runs), *ends) == 0
    return board


def csv_rows(board: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """By entry, task and precision."""
    text = (board / "board.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    found = {(row["entry"], row["task"], row["precision"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_the_markdown_table(built: Path) -> None:
    text = (built / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert rows[1].startswith("| 1 (1 to ")
    assert "% | sure |" in rows[1]
    assert "| collapsed | - | broken |" in text
    assert "recovers: made&#95;knowmem&#95;f at rtn-int4" in text
    assert "| none | " in text


def test_the_csv(built: Path) -> None:
    text = (built / "board.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == 4 * 3 * 3 + 3 * 3 + 3, "four entries, the target, the retrained model"
    found = [r for r in rows if (r["entry"], r["precision"]) == ("ga_gdr", "rtn-int4")]
    assert {r["task"]: r["verdict"] for r in found}["made_knowmem_f"] == "recovers"
    states = [r["state"] for r in rows]
    assert set(states[:36]) == {"ranked", "collapsed"}
    assert states[36:] == ["target"] * 9 + ["retrained"] * 3
    assert all(r["required"] == "true" for r in rows)


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", " =1"]
)
def test_no_text_cell_is_a_formula(text: str) -> None:
    assert cell(text)[0] not in "=+-@\t\r "


def test_an_incomplete_entry_does_not_verify(
    make_board: MakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board(BOARD, names=(*NAMES[:3], "partial"))
    assert call("leaderboard", "verify", str(board)) == 1
    assert "no run at rtn-int4" in capsys.readouterr().out


def test_a_target_without_a_precision_is_no_board(
    make_board: MakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board(BOARD.replace("int4]", "int4, rtn-int3]"), names=NAMES[:2])
    assert call("leaderboard", "build", str(board)) == 2
    assert "target: no run at rtn-int3" in capsys.readouterr().err


def test_an_incomplete_entry_is_shown_and_never_ranked(make_board: MakeBoard) -> None:
    folder = make_board(BOARD, names=(*NAMES[:3], "partial"))
    assert call("leaderboard", "build", str(folder)) == 0
    assert "incomplete: no run at rtn-int4" in (folder / "index.html").read_text(encoding="utf-8")
    board = read_board(folder)
    standings = rank_entries(board, verify_board(board)[0])
    (place,) = [p for p in standings.places if p.entry.name == "partial"]
    assert (place.rank, place.state) == (None, "incomplete: no run at rtn-int4")


def test_an_entry_without_full_precision_is_shown_too(make_board: MakeBoard) -> None:
    board = make_board()
    path = board / "entries/npo.json"
    content = read(path)
    content["runs"] = [r for r in content["runs"] if r["run"]["condition"]["name"] != "none"]
    path.write_text(entry_json(BoardEntry.model_validate(content)), encoding="ascii")
    assert call("leaderboard", "verify", str(board)) == 1
    assert call("leaderboard", "build", str(board)) == 0
    text = (board / "index.html").read_text(encoding="utf-8")
    assert "incomplete: no run at none" in text


def test_boards_are_found(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [b.name for b in find_boards([built.parent])] == ["made"]
    assert [b.name for b in find_boards([built])] == ["made"]
    assert call("leaderboard", "verify", str(built / "tasks")) == 2
    assert "no board.yaml" in capsys.readouterr().err


def test_no_board_yet_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call("leaderboard", "build") == 0
    assert "no board is defined" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("ranking: [made_knowmem_f]", "ranking: [x]", "x is not in tasks"),
        ("[none, rtn-int8, rtn-int4]", "[rtn-int4]", "full precision, is missing"),
        ("utility_floor: 0.5", "utility_floor: 2", "board.yaml:6: utility_floor"),
        ("title: A board", "titel: A board", "unknown key|title"),
    ],
)
def test_a_bad_definition_is_one_line(
    built: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    old: str,
    new: str,
    words: str,
) -> None:
    (tmp_path / "board.yaml").write_text(BOARD.replace(old, new), encoding="utf-8")
    assert call("leaderboard", "build", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert any(word in error for word in words.split("|"))


def test_a_board_without_anchors_is_refused(
    make_board: MakeBoard, capsys: pytest.CaptureFixture[str]
) -> None:
    board = make_board(BOARD, names=("sure",))
    assert call("leaderboard", "build", str(board)) == 2
    assert "needs one target entry and has 0" in capsys.readouterr().err
    assert call("leaderboard", "build", str(make_board(BOARD, names=()))) == 2
    assert "has no entries yet" in capsys.readouterr().err


def test_an_entry_names_no_folder_of_its_maker(
    bench: Bench, made_board: Path, tmp_path: Path
) -> None:
    board: Path = shutil.copytree(made_board, tmp_path / "made")
    (runs,) = bench.out.glob("ga_gdr-*")
    copied = shutil.copytree(runs, tmp_path / runs.name)
    home = "/home/somebody/models"
    for path in copied.glob("*/run.json"):
        run = json.loads(path.read_text(encoding="utf-8"))
        checkpoint = run["checkpoint"]
        checkpoint["base"] = checkpoint | {"path": f"{home}/base"}
        checkpoint["path"] = f"{home}/ga_gdr"
        source = {"auc": 0.5, "kind": "run", "source": f"{home}/retrained/ at none"}
        run["tasks"]["made_privleak"]["auc_reference"] = source
        path.write_text(json.dumps(run), encoding="utf-8")
    assert call("leaderboard", "add", str(copied), "--board", str(board), "--name", "mine") == 0
    text = (board / "entries/mine.json").read_text(encoding="ascii")
    assert home not in text
    for name in ("ga_gdr", "base", "retrained at none"):
        assert f'"{name}"' in text


def test_trainings_of_one_recipe_take_one_place(tmp_path: Path) -> None:
    made = Bench(tmp_path / "runs", n=24)

    def skill(forget: float, gap: float) -> Skill:
        return Skill.of(forget, 0.85, gap, n=24)

    knows, hides = skill(0.9, 4), skill(0.1, -0.5)
    made.model("target", none=knows, int8=knows, int4=skill(0.8, 3.5))
    made.model("retrained", none=skill(0.15, 0.05))
    for seed, back in enumerate((0.2, 0.7)):
        made.model(f"npo-s{seed}", none=hides, int8=hides, int4=skill(back, 1))
        made.train(f"npo-s{seed}", "a" * 16, seed)
    made.model("npo-s2", none=hides, int8=hides)  # incomplete: no part of the place
    made.train("npo-s2", "a" * 16, 2)
    board = tmp_path / "made"
    board.mkdir()
    (board / "board.yaml").write_text(BOARD, encoding="utf-8")
    shutil.copytree(made.tasks, board / "tasks")
    for name in ("target", "retrained", "npo-s0", "npo-s1", "npo-s2"):
        (runs,) = made.out.glob(f"{name}-*")
        role = name if name in ("target", "retrained") else "unlearned"
        ends = ["--board", str(board), "--name", name, "--role", role, "--note", f"of {name}"]
        assert call("leaderboard", "add", str(runs), *ends) == 0
    assert call("leaderboard", "build", str(board)) == 0
    text = (board / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line.startswith("| 1 (")]
    assert "| npo | 2 seeds |" in line
    assert "| npo-s2 | 1 seed |" in text
    assert "- npo-s0: of npo-s0" in text
    assert "- npo-s1: of npo-s1" in text
    rows = list(csv.DictReader(io.StringIO((board / "board.csv").read_text(encoding="utf-8"))))
    (row,) = [
        r
        for r in rows
        if (r["entry"], r["task"], r["precision"]) == ("npo", "made_knowmem_f", "rtn-int4")
    ]
    values = [
        read_run(found / "rtn-int4").tasks["made_knowmem_f"].value
        for seed in range(2)
        for found in made.out.glob(f"npo-s{seed}-*")
    ]
    assert row["seeds"] == "2"
    assert float(row["value"]) == pytest.approx(sum(v or 0.0 for v in values) / 2, abs=1e-4)
    assert float(row["value_low"]) < min(v or 0.0 for v in values), "two seeds 50 points apart"
    shown = (board / "index.html").read_text(encoding="utf-8")
    assert "(2 seeds)" in shown
    assert all(f'"npo-s{seed}",[["scheme"' in shown for seed in range(2)), "each one's provenance"
    (runs,) = made.out.glob("npo-s1-*")
    ends = ["--board", str(board), "--name", "npo-s1", "--role", "control"]
    assert call("leaderboard", "add", str(runs), *ends) == 0
    apart = rank_entries(read_board(board), verify_board(read_board(board))[0])
    states = {place.name: (place.state, len(place.entries)) for place in apart.places}
    assert states["npo-s0"] == ("ranked", 1), "no control takes a method out of the ranking"
    assert states["npo-s1"] == ("control", 1)
