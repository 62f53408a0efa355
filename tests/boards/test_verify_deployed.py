"""A board, its page and a policy that ask for what another tool quantized."""

from __future__ import annotations

import csv
import hashlib
import html
import json
import shutil
from pathlib import Path

import pytest

from tests.boards.conftest import BOARD
from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill
from unlearnbench import evaluate
from unlearnbench.results import DeployedFile
from unlearnbench.runs.folder import run_path

NAME = "deployed:gguf-q4_k_m"
ROWS = 24


def measure(made: Bench, name: str, skill: Skill) -> Path:
    """A run of a model's own GGUF file."""
    model = made.scripted(name, NAME, skill)
    file = DeployedFile(
        path=f"{name}-Q4_K_M.gguf",
        format="gguf",
        weights_sha256=hashlib.sha256(f"file of {name}".encode()).hexdigest(),
    )
    model.condition = model.condition.model_copy(update={"kind": "deployed", "deployed": file})
    options = {"data_dir": made.data, "include_path": [made.tasks], "protocol": "muse"}
    evaluate(model, "made", output=made.out, **options)  # type: ignore[arg-type]
    return run_path(made.out, model.checkpoint, NAME)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    made = Bench(tmp_path_factory.mktemp("deployed"), n=ROWS)

    def skill(forget: float, retain: float, gap: float) -> Skill:
        return Skill.of(forget, retain, gap, n=ROWS)

    plain = {
        "target": skill(0.9, 0.9, 4.0),
        "retrained": skill(0.15, 0.9, 0.05),
        "ga_gdr": skill(0.1, 0.8, -0.5),
        "sure": skill(0.1, 0.8, -0.5),
    }
    filed = plain | {"ga_gdr": skill(0.7, 0.8, 3.0)}
    for name in plain:
        made.model(name, none=plain[name])
        measure(made, name, filed[name])
    return made


def runs_of(bench: Bench, name: str) -> str:
    (found,) = bench.out.glob(f"{name}-*")
    return str(found)


def test_a_board_is_added_verified_built_and_shows_it(bench: Bench, tmp_path: Path) -> None:
    board = tmp_path / "made"
    board.mkdir()
    text = BOARD.replace("rtn-int8, rtn-int4", f'"{NAME}"')
    (board / "board.yaml").write_text(text, encoding="utf-8")
    shutil.copytree(bench.tasks, board / "tasks")
    for name in ("target", "retrained", "ga_gdr", "sure"):
        role = name if name in ("target", "retrained") else "unlearned"
        ends = ["--board", str(board), "--name", name, "--role", role]
        assert call("leaderboard", "add", runs_of(bench, name), *ends) == 0
    assert call("leaderboard", "verify", str(board)) == 0
    assert call("leaderboard", "build", str(board)) == 0
    entry = (board / "entries" / "ga_gdr.json").read_text(encoding="ascii")
    assert "ga_gdr-Q4_K_M.gguf" in entry  # whose weights they are
    rows = list(csv.DictReader((board / "board.csv").read_text(encoding="utf-8").splitlines()))
    shown = [row for row in rows if NAME in row.values()]
    assert {"ga_gdr", "sure", "target"} <= {cell for row in shown for cell in row.values()}
    page = (board / "index.html").read_text(encoding="utf-8")
    assert NAME in page
    readme = html.unescape((board / "README.md").read_text(encoding="utf-8"))
    assert readme.index("| sure |") < readme.index("| ga_gdr |")  # which its file brings back
    assert NAME in readme


def test_a_policy_names_it(
    bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f'tasks: [made_knowmem_f]\nprecisions: [none, "{NAME}"]\nmax_recovered: 0.25\n'
    )
    sides = ["--target", runs_of(bench, "target"), "--retrained", runs_of(bench, "retrained")]
    told = ["--policy", str(policy), *sides, "--json", str(tmp_path / "found.json")]
    assert call("check", runs_of(bench, "ga_gdr"), *told) == 1
    assert NAME in capsys.readouterr().out
    assert NAME in json.dumps(json.loads((tmp_path / "found.json").read_text()))
    assert call("check", runs_of(bench, "sure"), *told) == 0
