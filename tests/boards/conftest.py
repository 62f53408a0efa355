from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_main import call
from tests.toy_runs import Bench, Skill, few_draws

BOARD = """\
title: A board of made models
description: Made for tests.
base_model: none at all
tasks: {made_knowmem_f: 1.0, made_knowmem_r: 1.0, made_privleak: 1.0}
precisions: [none, rtn-int8, rtn-int4]
utility_floor: 0.5
ranking: [made_knowmem_f]
min_samples: 20
publish_texts: true
"""

ROWS = 24
MakeBoard = Callable[..., Path]


@pytest.fixture(scope="package", autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


@pytest.fixture(scope="package")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Runs of a target, a retrained model and five entries."""
    made = Bench(tmp_path_factory.mktemp("runs"), n=ROWS)

    def skill(forget: float, retain: float, gap: float) -> Skill:
        return Skill.of(forget, retain, gap, n=ROWS)

    knows = skill(0.9, 0.9, 4.0)
    made.model("target", none=knows, int8=knows, int4=skill(0.8, 0.8, 3.5))
    made.model("retrained", none=skill(0.15, 0.9, 0.05))
    hides = skill(0.1, 0.8, -0.5)
    made.model("ga_gdr", none=hides, int8=hides, int4=skill(0.7, 0.8, 3.0))
    made.model("sure", none=hides, int8=hides, int4=skill(0.13, 0.75, -0.4))
    made.model("npo", none=hides, int8=hides, int4=skill(0.3, 0.8, 0.5))
    none = skill(0, 0.1, -2.0)
    made.model("broken", none=none, int8=none, int4=none)
    made.model("partial", none=hides, int8=hides)
    return made


@pytest.fixture(scope="package")
def make_board(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> MakeBoard:
    """``make_board(text, *more)`` makes a board with all entries but ``partial``; ``more`` goes to
    ``leaderboard add``.
    """

    def make(text: str = BOARD, *more: str, names: tuple[str, ...] = NAMES) -> Path:
        board: Path = tmp_path_factory.mktemp("boards") / "made"
        board.mkdir()
        (board / "board.yaml").write_text(text, encoding="utf-8")
        shutil.copytree(bench.tasks, board / "tasks")
        for name in names:
            (runs,) = bench.out.glob(f"{name}-*")
            role = name if name in ("target", "retrained") else "unlearned"
            ends = ["--board", str(board), "--name", name, "--role", role, *more]
            assert call("leaderboard", "add", str(runs), *ends) == 0
        return board

    return make


NAMES = ("target", "retrained", "ga_gdr", "sure", "npo", "broken")


@pytest.fixture(scope="package")
def made_board(make_board: MakeBoard) -> Path:
    """A board with texts. Not to be changed: copy it first."""
    return make_board()
