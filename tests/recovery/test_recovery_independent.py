"""A second implementation finds the same figures in compare's JSON and a board's CSV."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_main import call
from tests.independent.boards import board_differences
from tests.independent.files import Model, read_runs
from tests.independent.rows import comparison, differences
from tests.toy_runs import Bench, Skill

ROWS = 30
WORDS = 4
BOARD = """\
title: A board of made models
base_model: none at all
tasks: {made_knowmem_f: 1.0, made_knowmem_r: 1.0, made_privleak: 1.0}
precisions: [none, rtn-int8, rtn-int4]
utility_floor: 0.5
ranking: [made_knowmem_f, made_privleak]
min_samples: 20
publish_texts: true
"""
ENTRIES = ("back", "kept", "few", "broken", "knows", "seed_a", "seed_b", "seed_c")


def skill(forget: float, retain: float, gap: float, seed: int = 0, dense: bool = False) -> Skill:
    """Of a mean share of words: four right or none, or any number of them where ``dense``."""
    if not dense:
        return Skill.of(forget, retain, gap, n=ROWS, seed=seed)
    rng = np.random.default_rng(seed + 100)
    words = [[int(w) for w in rng.binomial(WORDS, p, ROWS)] for p in (forget, retain)]
    return Skill(words[0], words[1], gap)


def make_bench(root: Path) -> Bench:
    """Sparse and dense answers; AUCs of 0, near 0 and between; three trainings of one recipe; a
    target that forgets at gptq.
    """
    made = Bench(root, n=ROWS)
    knows = skill(0.9, 0.85, 4.0)
    weak = skill(0.3, 0.8, 3.0)
    some = skill(0.9, 0.8, 4.0, dense=True)
    made.model("target", none=knows, int8=some, int4=skill(0.8, 0.8, 3.5), gptq=weak)
    made.model("retrained", none=skill(0.2, 0.85, 0.1, dense=True), int8=skill(0.2, 0.8, 0.2))
    hides = skill(0.15, 0.8, -0.6, dense=True)
    more = skill(0.2, 0.8, -0.4, dense=True)
    made.model("back", none=hides, int8=more, int4=skill(0.75, 0.8, 3.0))
    kept = skill(0.3, 0.75, -0.3, seed=3, dense=True)
    made.model("kept", none=hides, int8=hides, int4=kept)
    little, bit = skill(0.05, 0.8, 1.0), skill(0.17, 0.7, 1.6)
    made.model("few", none=little, int8=bit, int4=skill(0.4, 0.7, 2.2), gptq=little)
    nothing = skill(0.0, 0.1, -2.0)
    made.model("broken", none=nothing, int8=nothing, int4=skill(0.1, 0.6, -1.0))
    made.model("knows", none=knows, int8=knows, int4=skill(0.8, 0.8, 3.9))
    for i, name in enumerate(("seed_a", "seed_b", "seed_c")):
        none = skill(0.1 + 0.05 * i, 0.8, -0.5 + 0.2 * i, seed=i, dense=True)
        more = skill(0.4 + 0.1 * i, 0.7, 1.0 + 0.5 * i, seed=i, dense=True)
        made.model(name, none=none, int8=none, int4=more)
        origin = {"method": "ga_gdr", "recipe": "0123456789abcdef", "seed": str(i)}
        for file in folder(made, name).rglob("run.json"):
            run = json.loads(file.read_text(encoding="utf-8"))
            run["checkpoint"]["origin"] = origin
            file.write_text(json.dumps(run), encoding="utf-8")
    return made


def folder(bench: Bench, name: str) -> Path:
    (found,) = bench.out.glob(f"{name}-*")
    return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("independent"))


def compared(bench: Bench, file: Path) -> int:
    runs = [str(folder(bench, name)) for name in ENTRIES]
    ends = [
        "--target",
        str(folder(bench, "target")),
        "--retrained",
        str(folder(bench, "retrained")),
    ]
    return call("compare", *runs, *ends, "--json", str(file))


def make_board(bench: Bench, root: Path) -> Path:
    board = root / "made"
    board.mkdir()
    (board / "board.yaml").write_text(BOARD, encoding="utf-8")
    shutil.copytree(bench.tasks, board / "tasks")
    for name in ("target", "retrained", *ENTRIES):
        role = name if name in ("target", "retrained") else "unlearned"
        ends = ["--board", str(board), "--name", name, "--role", role]
        assert call("leaderboard", "add", str(folder(bench, name)), *ends) == 0
    assert call("leaderboard", "build", str(board)) == 0
    return board


def models(runs: Path) -> tuple[list[Model], Model, Model]:
    """The entries, the target and the retrained model below a folder."""
    found = {}
    for path in sorted(runs.iterdir()):
        model = read_runs(path)
        found[model.name] = model
    target, retrained = found.pop("target"), found.pop("retrained")
    return list(found.values()), target, retrained


@pytest.mark.slow
@pytest.mark.ci
def test_compare(bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "recovery.json"
    assert compared(bench, file) == 0
    stated = json.loads(file.read_text(encoding="utf-8"))
    assert {row["verdict"] for row in stated} >= {
        *("recovers", "not decided", "collapsed", "had not forgotten"),
        *("target forgets", "holds"),
    }
    assert {row["seeds"] for row in stated} == {1, 3}
    assert differences(stated, comparison(*models(bench.out))) == []


@pytest.mark.slow
@pytest.mark.ci
def test_a_board(bench: Bench, tmp_path: Path) -> None:
    assert board_differences(make_board(bench, tmp_path)) == []


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("name", ["smollm2-news", "smollm2-bf16"])
def test_the_boards_of_smollm2(name: str) -> None:
    board = Path(__file__).parents[2] / "leaderboards" / name
    assert board_differences(board) == []
