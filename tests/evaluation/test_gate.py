"""``check --model``, with all samples and until decided, on scripted models."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.recovery.test_compare import references
from tests.recovery.test_policy import POLICY, N
from tests.recovery.test_policy import SKILLS as JUDGED
from tests.toy_runs import PRECISIONS, Bench, Skill, few_draws, read_json
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.evaluation import gate
from unlearnbench.evaluation.run import Evaluation
from unlearnbench.models.base import Model
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.runs.folder import run_path

_POOR, _NOTHING = Skill.of(0, 0.05, n=N), Skill.of(0, 0, n=N)
BOARD = """\
title: Made
base_model: none
tasks: {made_knowmem_f: 1.0, made_knowmem_r: 1.0, made_privleak: 1.0}
precisions: [none, rtn-int8, rtn-int4]
utility_floor: 0.5
ranking: [made_knowmem_f]
publish_texts: true
"""
SKILLS = JUDGED | {"collapsed": {"none": _POOR, "int8": _NOTHING, "int4": _NOTHING}}


class Counting(ScriptedModel):
    """Says what it was asked, and may be stopped after some answers."""

    asked: list[str]
    stop_after: int | None = None

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        for answer in super().generate(requests, skip):
            self._tell(answer.id)
            yield answer

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        for answer in super().score(requests, skip):
            self._tell(answer.id)
            yield answer

    def _tell(self, name: str) -> None:
        if Counting.stop_after is not None and len(self.asked) >= Counting.stop_after:
            raise KeyboardInterrupt
        self.asked.append(f"{self.condition.name} {name}")


@dataclass
class Shelf:
    """Scripted checkpoints by name, in place of those that ``open_runs`` would open."""

    bench: Bench
    asked: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def model(self, name: str, condition: str) -> ScriptedModel:
        short = {full: s for s, full in PRECISIONS.items()}[condition]
        found = self.bench.scripted(name, condition, SKILLS[name][short])
        found.__class__ = Counting
        found.asked = self.asked  # type: ignore[attr-defined]
        return found

    def open_runs(
        self,
        evaluation: Evaluation,
        path: str,
        names: Sequence[str],
        locks: ExitStack,
        make: Callable[..., Any],
    ) -> list[tuple[Any, Callable[[], Model]]]:
        found = list[tuple[Any, Callable[[], Model]]]()
        for name in names:
            model = self.model(path, name)
            settings = evaluation.settings(model.dtype, model.device)
            run = make(evaluation, model.checkpoint, model.config, model.condition, settings)
            run.open(locks)

            found.append((run, partial(self.load, model)))
        return found

    def load(self, model: ScriptedModel) -> Model:
        self.loads.append(model.condition.name)
        return model


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("gate"), n=N)
    for name in ("target", "retrained"):
        made.model(name, **SKILLS[name])
    return made


@pytest.fixture
def shelf(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    found = Shelf(bench)
    monkeypatch.setattr(gate, "open_runs", found.open_runs)
    monkeypatch.setattr(Counting, "stop_after", None)
    return found


@dataclass
class Check:
    """The command, in a folder of its own."""

    shelf: Shelf
    folder: Path

    def __call__(self, name: str, *more: str, policy: str = POLICY) -> int:
        file = self.folder / "policy.yaml"
        file.write_text(policy, encoding="utf-8")
        bench = self.shelf.bench
        where = ["--data-dir", str(bench.data), "--include-path", str(bench.tasks)]
        out = ["--output", str(self.folder / "out"), "--json", str(self.folder / "found.json")]
        ends = references(bench)
        return call("check", "--model", name, "--policy", str(file), *ends, *where, *out, *more)

    @property
    def found(self) -> dict[str, Any]:
        content = read_json(self.folder / "found.json")
        assert isinstance(content, dict)
        return content

    def files(self, pattern: str = "*/*/samples/*") -> dict[str, bytes]:
        out = self.folder / "out"
        return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob(pattern))}


@pytest.fixture
def check(shelf: Shelf, tmp_path: Path) -> Check:
    return Check(shelf, tmp_path)


@pytest.mark.parametrize(
    ("name", "status"),
    [("target", 1), ("ga_gdr", 1), ("collapsed", 1), ("retrained", 0), ("close", 2)],
)
def test_the_outcome_is_that_of_all_samples(check: Check, name: str, status: int) -> None:
    assert check(name, "--until-decided") == status
    early, asked = check.found, len(check.shelf.asked)
    assert early["samples"]["asked"] == asked == len(set(check.shelf.asked))
    assert early["samples"]["of"] == 3 * 4 * N
    assert asked <= 0.25 * 3 * 4 * N if status == 1 else asked > 0.5 * 3 * 4 * N
    assert check(name) == status, "the same command without the option goes on"
    assert len(check.shelf.asked) == 3 * 4 * N == len(set(check.shelf.asked))
    whole = {(f["task"], f["precision"], f["rule"]): f for f in check.found["findings"]}
    assert {(f["task"], f["precision"], f["rule"]) for f in early["findings"]} == set(whole)
    for one in early["findings"]:
        other = whole[one["task"], one["precision"], one["rule"]]["outcome"]
        known = one["outcome"] == "not decided" or one["outcome"] == other
        assert known or "not decided" in other, one


def test_whole_runs_are_those_of_an_evaluation(check: Check) -> None:
    """Asked early first, then to the end: every record as a plain evaluation has it."""
    assert check("ga_gdr", "--until-decided") == 1
    assert check("ga_gdr") == 1
    runs = {}
    for name in ("none", "rtn-int8", "rtn-int4"):
        model = check.shelf.model("ga_gdr", name)
        bench, out = check.shelf.bench, check.folder / "plain"
        evaluate(model, "made", data_dir=bench.data, include_path=[bench.tasks], output=out)
        runs[name] = run_path(out, model.checkpoint, name)
    for name, path in runs.items():
        there = check.folder / "out" / path.parent.name / name
        ours, plain = (json.loads((p / "run.json").read_text()) for p in (there, path))
        for task, result in plain["tasks"].items():
            assert ours["tasks"][task]["records_sha256"] == result["records_sha256"]
            assert "drawn" not in ours["tasks"][task]
        assert not (there / "partial").exists()


def test_a_part_says_so_and_stands_in_no_comparison(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("target", "--until-decided") == 1
    (folder,) = (check.folder / "out").iterdir()
    run = json.loads((folder / "none" / "run.json").read_text())
    for task in run["tasks"].values():
        assert task["drawn"] == {"seed": 0, "of": N}
        assert 0 < task["n"] < N
    capsys.readouterr()
    ends = references(check.shelf.bench)
    file = str(check.folder / "policy.yaml")
    board = check.folder / "board"
    board.mkdir()
    (board / "board.yaml").write_text(BOARD, encoding="utf-8")
    for command in (
        ["check", str(folder), "--policy", file, *ends],
        ["compare", str(folder), *ends],
        ["curve", str(folder)],
        ["rescore", str(folder / "none"), "--include-path", str(check.shelf.bench.tasks)],
        ["leaderboard", "add", str(folder), "--board", str(board), "--name", "part"],
    ):
        assert call(*command) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "was decided on" in line
        assert "without --until-decided" in line
    assert not (board / "entries").exists()
    assert call("show", str(folder / "none")) == 0
    assert f" of {N} samples alone, in the order of seed 0" in capsys.readouterr().out
    ends[3] = str(folder)
    assert call("check", "--model", "ga_gdr", "--policy", file, *ends) == 2
    assert "was decided on" in capsys.readouterr().err


@pytest.mark.parametrize("stops", [(3,), (1, 9, 30, 31)])
def test_interrupted_in_the_middle_of_a_round_it_goes_on(
    check: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """No answer is asked twice, and what is found is what one go finds."""
    other = Check(Shelf(check.shelf.bench), tmp_path / "one_go")
    other.folder.mkdir()
    monkeypatch.setattr(gate, "open_runs", other.shelf.open_runs)
    assert other("ga_gdr", "--until-decided") == 1
    monkeypatch.setattr(gate, "open_runs", check.shelf.open_runs)
    for after in stops:
        monkeypatch.setattr(Counting, "stop_after", after)
        assert check("ga_gdr", "--until-decided") == 130
        assert len(check.shelf.asked) == after
    monkeypatch.setattr(Counting, "stop_after", None)
    assert check("ga_gdr", "--until-decided") == 1
    assert sorted(check.shelf.asked) == sorted(other.shelf.asked)
    assert check.found == other.found
    assert check.files() == other.files()


def test_once_decided_no_model_is_loaded_again(check: Check) -> None:
    assert check("ga_gdr", "--until-decided") == 1
    first, loads = check.found, len(check.shelf.loads)
    assert check("ga_gdr", "--until-decided") == 1
    assert len(check.shelf.loads) == loads
    assert check.found == first
    assert check("ga_gdr", "--until-decided", "--fresh") == 1
    assert len(check.shelf.loads) == 2 * loads


def test_finished_runs_are_drawn_from(check: Check) -> None:
    assert check("ga_gdr") == 1
    asked = len(check.shelf.asked)
    assert check("ga_gdr", "--until-decided") == 1
    assert len(check.shelf.asked) == asked
    assert check.found["samples"]["asked"] < asked / 4


def test_another_seed_is_another_order(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("ga_gdr", "--until-decided") == 1
    assert check("ga_gdr", "--until-decided", "--seed", "1") == 2
    assert "seed is 0 there and 1 here" in capsys.readouterr().err


def test_a_changed_part_is_refused(check: Check, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("ga_gdr", "--until-decided") == 1
    path = next((check.folder / "out").glob("*/none/samples/made_knowmem_f.jsonl"))
    path.write_text(path.read_text().replace('"score": 0.0', '"score": 1.0', 1), encoding="utf-8")
    assert check("ga_gdr", "--until-decided") == 2
    assert "is not the file that run.json names" in capsys.readouterr().err


def test_a_part_in_another_order_is_refused(
    check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check("ga_gdr", "--until-decided") == 1
    path = next((check.folder / "out").glob("*/none/run.json"))
    content = json.loads(path.read_text())
    samples = path.parent / "samples" / "made_knowmem_f.jsonl"
    lines = samples.read_text().splitlines()
    short = "".join(f"{line}\n" for line in lines[1:])
    samples.write_text(short, encoding="utf-8")
    content["tasks"]["made_knowmem_f"]["records_sha256"] = hashlib.sha256(
        short.encode()
    ).hexdigest()
    path.write_text(json.dumps(content), encoding="utf-8")
    capsys.readouterr()
    assert check("ga_gdr", "--until-decided") == 2
    assert "no beginning of its drawn order" in capsys.readouterr().err


def test_min_samples_beyond_the_rows_ask_nothing(check: Check) -> None:
    assert check("target", "--until-decided", policy=POLICY + "min_samples: 101\n") == 2
    assert check.shelf.asked == []
    assert all("asks for 101" in f["message"] for f in check.found["findings"])
    assert check("target", "--until-decided", policy=POLICY + "min_samples: 60\n") == 1
    decided = [f for f in check.found["findings"] if f["outcome"] == "fail"]
    assert decided
    assert all(60 <= f["n"] <= N == f["of"] for f in decided)


@pytest.mark.parametrize(
    ("more", "policy", "words"),
    [
        (["--limit", "7"], POLICY, "number of samples is 100 there and 7 here"),
        (["--ppl-lower"], POLICY.replace("made_*", "other_*"), "no task other_*"),
        (["--certify", "c.json"], POLICY, "--certify rests on all samples"),
        ([], POLICY.replace("int4]", "nf4]"), "has no run at bnb-nf4"),
        ([], POLICY.replace("int4]", "relearn-20]"), "needs a control"),
        ([], POLICY.replace("int4]", "'deployed:gguf']"), "makes its conditions itself"),
        ([], "tasks: [made_privleak]\nprecisions: [none]\nmax_excess: 5\n", "max_excess fits"),
        ([], "tasks: ['*_f']\nprecisions: [none]\nmax_recovered: 0.1\n", "max_recovered fits"),
        ([], POLICY.replace("max_recovered: 0.3", "max_recovered: {nf4: 1}"), "not among its"),
        (["--verify-certificate", "c.json"], POLICY, "give --policy FILE, or"),
    ],
)
def test_bad_input_is_one_line_and_asks_nothing(
    check: Check,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    policy: str,
    words: str,
) -> None:
    assert check("ga_gdr", "--until-decided", *more, policy=policy) == 2
    (*_, line) = capsys.readouterr().err.splitlines()
    assert words in line
    assert line.startswith("unlearnbench: error: ")
    assert check.shelf.asked == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["runs", "--until-decided"], "--until-decided needs --model"),
        (["runs", "--limit", "5"], "--limit needs --model"),
        (["runs", "--model", "x"], "give RUN..., or --model PATH"),
        ([], "give RUN..., or --model PATH"),
    ],
)
def test_options_that_do_not_go_together(
    bench: Bench, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    assert call("check", *words, "--policy", "p.yaml", *references(bench)) == 2
    assert said in capsys.readouterr().err


def test_launched_processes_are_refused(
    check: Check, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert check("ga_gdr") == 2
    assert "runs in one process" in capsys.readouterr().err
