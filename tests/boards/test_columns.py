"""Entries of format 3: what a file holds, how small it is, and forgeries of it."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import BOARD, MakeBoard
from tests.boards.test_verify import SMALL, forge, of, problems, read, run_at, verdicts
from tests.cli.test_main import call
from tests.recovery.test_utility import family
from tests.toy_runs import Bench
from unlearnbench.boards.columns import MOST, packed, shorten, unpacked
from unlearnbench.boards.entry import compact, entry_json, read_entry
from unlearnbench.errors import ResultError
from unlearnbench.recovery.compare import Comparison, open_comparison
from unlearnbench.results import LikelihoodRecord

ROOT = Path(__file__).resolve().parents[2]
F, LEAK = "made_knowmem_f", "made_privleak"


@pytest.fixture(scope="module")
def made(make_board: MakeBoard) -> Path:
    return make_board(names=SMALL)


@pytest.fixture(scope="module")
def hashed(make_board: MakeBoard) -> Path:
    return make_board(BOARD.replace("publish_texts: true\n", ""), "--no-texts", names=SMALL)


@pytest.fixture
def board(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "made")


def hexes(text: str) -> str:
    return f"sha256:{random.Random(text).randrange(16**64):064x}"


def big(entry: dict[str, Any]) -> dict[str, Any]:
    """Records of 12 conditions x 8 tasks x 100 samples, no two answers alike, as in ``entry``."""
    rng, runs = random.Random(0), []
    for number in range(12):
        part = json.loads(json.dumps(entry["runs"][number % len(entry["runs"])]))
        old, part["run"]["tasks"], part["samples"] = part["run"]["tasks"], {}, {}
        part["run"]["condition"]["name"] = f"condition-{number}"
        for task in (f"{c}_{t}" for c in ("news", "books") for t in ("f", "r", "v", "leak")):
            result = dict(old[f"news_{'privleak_short' if task.endswith('leak') else 'knowmem_f'}"])
            for key in result.keys() & {"value", "stderr", "auc", "auc_stderr"}:
                result[key] = rng.random()
            result["ci"] = [rng.random(), rng.random()]
            result["records_sha256"] = hexes(f"{task} {number}")[7:]
            part["run"]["tasks"][task] = result
            part["samples"][task] = [
                {"task": task, "id": f"{split}/{i}", **fields}
                for split in (("forget", "holdout") if task.endswith("leak") else ("forget",))
                for i in range(100)
                for fields in [_fields(task, split, i, number, rng)]
            ]
        runs.append(part)
    return entry | {"texts": False, "runs": runs}


def _fields(task: str, split: str, i: int, at: int, rng: random.Random) -> dict[str, Any]:
    if task.endswith("leak"):
        scores = {name: rng.random() * 12 for name in ("Min-40%", "PPL", "Min-20%")}
        return {"split": split, "n_tokens": 100 + i, "scores": scores}
    ours, theirs = rng.randint(60, 100), rng.randint(60, 100)
    both = rng.randint(0, 60)
    score = 2 * (both / ours) * (both / theirs) / (both / ours + both / theirs) if both else 0.0
    texts = {"prompt": f"p{task}{i}", "output": f"o{task}{i}{at}", "target": f"t{task}{i}"}
    hashes = {key: hexes(text) for key, text in texts.items()}
    return {**hashes, "n_tokens": 128, "score": score, "scores": {"rouge1": score}}


def test_12_conditions_8_tasks_and_100_samples_take_250_kb(tmp_path: Path) -> None:
    path, real = tmp_path / "big.json", ROOT / "leaderboards/smollm2-news/entries/ga_gdr.json"
    content = big(read(real)) | {"name": "big", "format_version": 2}
    path.write_text(json.dumps(content))
    whole = read_entry(path)
    text = entry_json(compact(whole))
    assert len(text) <= 250_000 < 4_000_000 < len(entry_json(whole))
    path.write_text(text)
    again = read_entry(path)
    assert entry_json(again) == text
    for old, new in zip(whole.runs, again.runs, strict=True):
        for task, records in old.samples.items():
            for was, now in zip(records, new.samples[task], strict=True):
                assert was.id == now.id
                if isinstance(was, LikelihoodRecord):
                    assert isinstance(now, LikelihoodRecord)
                    assert now.scores == pytest.approx({"Min-40%": was.scores["Min-40%"]}, 1e-11)
                else:
                    assert not isinstance(now, LikelihoodRecord)
                    assert now.score == pytest.approx(was.score, abs=1e-15)


@pytest.mark.parametrize("texts", [True, False])
def test_columns_hold_what_records_hold(texts: bool) -> None:
    table = {
        "t": [
            {
                **{"task": "t", "id": f"s/{i}", "score": [0.0, 1.0, 13 / 70][i]},
                "facts": {
                    **{"loss": [1e-5, 2.0, 0.123456789012][i], "tokens": i, "right": i > 1},
                    **{"each": [-1.5, i], "text": ["a", "12 13", "sha256:"][i]},
                    **{"hash": f"sha256:abc-_{i}", "hashes": [f"sha256:abc-_{i}"], "none": []},
                },
                "scores": {},
            }
            for i in range(3)
        ],
        "asked": [
            {
                **{"task": "asked", "id": f"{s}/{i}", "prompt": "p", "output": "o", "score": 0.5},
                **({"asked": {"scores": [0.5, 0.25], "rows": ["s/1"]}} if i else {}),
                "scores": {},
            }
            for s in ("s", "other")
            for i in range(2)
        ],
    }
    other = {task: [r | {"score": 1.0} for r in records] for task, records in table.items()}
    runs = [{"run": {"a": {"b": 1, "c": 2}}, "samples": table}]
    runs += [{"run": {"a": {"c": 2, "d": [1]}}, "samples": other}, runs[0]]
    entry = {"texts": texts, "runs": runs}
    file = packed(entry)
    assert unpacked(json.loads(json.dumps(file))) == entry
    assert file["runs"][0]["samples"]["t"]["score"] == "0. 1. 13/70"
    assert file["runs"][0]["samples"]["asked"]["ids"] == {"s": "0-1", "other": "0-1"}
    assert file["runs"][1]["run"] == {"a": {"b": None, "d": [1]}}
    assert file["runs"][2] == {}


def test_a_run_that_says_1_0_or_true_does_not_say_1() -> None:
    records = {"t": [{"task": "t", "id": "s/0", "score": 0.5, "scores": {}}]}
    runs = [{"run": {"a": value}, "samples": records} for value in (1, True, 1.0, [1], [1.0])]
    file = packed({"texts": False, "runs": runs})
    said = [part["run"]["a"] for part in unpacked(file)["runs"]]
    assert json.dumps(said) == "[1, true, 1.0, [1], [1.0]]"


def test_long_texts_are_one_value_each() -> None:
    texts = {"prompt": "a, b " * 2000, "output": "o", "target": "t"}
    records = [
        {"task": "t", "id": f"s/{i}", **texts, "score": 0.5, "scores": {}} for i in range(50)
    ]
    runs = [{"run": {"a": i}, "samples": {"t": records}} for i in range(30)]
    entry = {"texts": True, "runs": runs}
    assert unpacked(packed(entry)) == entry


def test_what_could_not_be_read_again_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    records = [{"task": "t", "id": f"s/{i}", "score": 0.5, "scores": {}} for i in range(50)]
    entry = {"texts": False, "runs": [{"run": {}, "samples": {"t": records}}] * 3}
    packed(entry)
    monkeypatch.setattr("unlearnbench.boards.columns.MOST", 150)
    with pytest.raises(ValueError, match="more than 150 values"):
        packed(entry)


def test_rows_are_not_written_out_before_they_are_counted() -> None:
    ids = {f"s{i}": "0-999999" for i in range(3)}
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="each of 3000000 samples"):
            unpacked({"runs": [{"samples": {"t": {"ids": ids, "score": "1."}}}]})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_rows_that_were_held_back_leave_gaps() -> None:
    records = [{"task": "t", "id": f"s/{i}", "score": 0.5, "scores": {}} for i in (0, 1, 4, 6, 7)]
    entry = {"texts": False, "runs": [{"run": {}, "samples": {"t": records}}]}
    file = packed(entry)
    assert file["runs"][0]["samples"]["t"]["ids"] == {"s": "0-1 4 6-7"}
    assert unpacked(file) == entry
    for odd in ("s/x", "s/01", "s", "s/-1", "s/\u0662"):
        runs = [{"run": {}, "samples": {"t": [records[0] | {"id": odd}]}}]
        with pytest.raises(ValueError, match="not numbered rows"):
            packed(entry | {"runs": runs})


def test_a_hash_is_shortened_and_nothing_else() -> None:
    assert shorten("sha256:" + "0" * 64) == "sha256:AAAAAA"
    assert shorten("sha256:" + "ff" * 32) == "sha256:______"
    assert shorten("sha256:AAAAAA") == "sha256:AAAAAA"
    assert shorten("a text") == "a text"


def test_both_kinds_of_board_verify(
    board: Path, hashed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (board, hashed):
        assert call("leaderboard", "verify", str(folder)) == 0
        assert capsys.readouterr().out.count("verified") == len(SMALL)


def test_old_and_new_entries_stand_on_one_board(
    hashed: Path, tmp_path: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(hashed, tmp_path / "made")
    monkeypatch.setattr("unlearnbench.boards.entry.compact", lambda entry: entry)
    (runs,) = bench.out.glob("sure-*")
    line = ["leaderboard", "add", str(runs), "--board", str(folder), "--name", "sure"]
    assert call(*line, "--no-texts") == 0
    assert json.loads((folder / "entries/sure.json").read_text())["format_version"] == 2
    assert verdicts(folder) == {name: [] for name in SMALL}


def test_a_boards_utility_is_of_the_figures_that_compare_takes(tmp_path: Path) -> None:
    """TOFU's model utility has ``truth_better``, which is no task's own figure."""
    runs, folder = family(tmp_path), tmp_path / "toys"
    folder.mkdir()
    tasks = "toy_forget: 1.0, toy_kept: 1.0, toy_words: 1.0"
    rules = f"title: T\nbase_model: none\ntasks: {{{tasks}}}\nprecisions: [none, rtn-int4]\n"
    rules += "utility_floor: 0.1\nranking: [toy_forget]\n"
    (folder / "board.yaml").write_text(rules)
    shutil.copytree(tmp_path / "tasks", folder / "tasks")
    for name, run in runs.items():
        role = "unlearned" if name == "hides" else name
        ends = ["--board", str(folder), "--name", name, "--role", role, "--no-texts"]
        assert call("leaderboard", "add", run, *ends) == 0
    assert verdicts(folder) == {name: [] for name in runs}
    entries = {name: read_entry(folder / f"entries/{name}.json").loaded() for name in runs}
    found = Comparison([entries["hides"]], entries["target"], entries["retrained"])
    theirs = found.row(found.entries[0], "toy_forget", "rtn-int4").utility
    own, target, retrained = (Path(runs[name]) for name in ("hides", "target", "retrained"))
    direct = open_comparison([own], target, retrained)
    ours = direct.row(direct.entries[0], "toy_forget", "rtn-int4").utility
    assert theirs is not None
    assert ours is not None
    assert theirs == pytest.approx(ours, rel=1e-10)

    def without(content: Any) -> None:
        kept = run_at(content, "none")
        del kept["run"]["tasks"]["toy_kept"]["scores"]
        for each in kept["samples"]["toy_kept"]:
            each["scores"] = {}

    assert of(forge(folder, without, "hides"), "toy_kept: scores is {}")


def record(content: dict[str, Any], at: str, task: str, number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = run_at(content, at)["samples"][task][number]
    return found


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: record(c, "rtn-int4", F).update(score=0.25), "its texts give"),
        (lambda c: record(c, "rtn-int4", F).update(output="w0x0"), "records_sha256"),
        (lambda c: record(c, "none", F, 3).update(n_tokens=99), "records_sha256"),
        (lambda c: record(c, "none", F).update(target="else"), "the target of forget_qa/0 is"),
        (lambda c: record(c, "none", LEAK)["scores"].update({"Min-40%": 99.0}), "auc is"),
        (lambda c: record(c, "none", LEAK).update(scores={"PPL": 1.0}), "figures are not Min-40%"),
        (lambda c: record(c, "none", F)["scores"].update(rouge1=1.0), "figures are not left out"),
        (lambda c: run_at(c, "none")["run"]["tasks"][F].update(value=1.5), "value is 1.5"),
        (lambda c: run_at(c, "none")["run"]["tasks"][F].update(ci=[0.0, 9.0]), "ci is"),
        (
            lambda c: run_at(c, "none")["run"]["tasks"][F].update(scores={"rouge1": 1.0}),
            "scores is",
        ),
        (
            lambda c: run_at(c, "none")["run"]["tasks"][LEAK].update(attacks={"PPL": {"auc": 0.1}}),
            "attacks is",
        ),
    ],
)
def test_a_forged_column(board: Path, edit: Callable[[Any], object], words: str) -> None:
    assert of(forge(board, edit), words)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"score": "', '"score": "1.0 ', "not a value for each"),
        ('"score": "', '"score": "+', "no number"),
        ('"score": "', '"score": "0.0000000000000000000 ', "not a value for each"),
        ('"forget_qa": "0-23"', '"forget_qa": "0-24"', "not a value for each"),
        ('"forget_qa": "0-23"', '"forget_qa": "0-999999999"', "not a value for each of 1000000000"),
        ('"forget_qa": "0-23"', '"forget_qa": "5-3"', "ids are no rows"),
        ('"forget_qa": "0-23"', '"forget_qa": "0-9999999 9999999-1"', "ids are no rows"),
        ('"forget_qa": "0-23"', '"forget_qa": "0-22 24"', "in order"),
        ('"forget_qa": "0-23"', '"forget_qa": "0-11 12-23"', "digit by digit"),
        ('"forget_qa": "0-23"', '"forget_qa": 24', "ids are no rows"),
        ('"score": "', '"score" : "', "digit by digit"),
        ('"samples": {', '"samples": {"x": [], ', "no columns with ids"),
    ],
)
def test_a_broken_file(board: Path, old: str, new: str, words: str) -> None:
    path = board / "entries/ga_gdr.json"
    text = path.read_text(encoding="ascii")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="ascii")
    assert of(problems(board), words)


def test_a_number_is_written_in_one_way(board: Path) -> None:
    path = board / "entries/ga_gdr.json"
    text = path.read_text(encoding="ascii")
    assert '"score": "1. ' in text
    path.write_text(text.replace('"score": "1. ', '"score": "1.0 ', 1), encoding="ascii")
    assert of(problems(board), "digit by digit")


def test_a_few_bytes_stand_for_no_endless_runs(board: Path) -> None:
    path = board / "entries/ga_gdr.json"
    content = json.loads(path.read_text(encoding="ascii"))
    path.write_text(json.dumps(content | {"runs": content["runs"][:1] + [{}] * 100_000}))
    with pytest.raises(ResultError, match=f"more than {MOST} values"):
        read_entry(path)
    content["runs"][0] = {"run": [0], "samples": 1}
    for runs in (content["runs"], [], None, [1], [{"samples": {"a": {"ids": {"s": 1}}}}]):
        path.write_text(json.dumps(content | {"runs": runs}))
        with pytest.raises(ResultError, match=r"ga_gdr\.json: "):
            read_entry(path)
