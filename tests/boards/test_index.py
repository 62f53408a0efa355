"""The index of boards and the builds that were kept, from the command line and in a browser."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.boards.conftest import BOARD, MakeBoard
from tests.boards.test_page import HOSTILE, Opened, axe
from tests.cli.test_main import call


@pytest.fixture(scope="module")
def folder(make_board: MakeBoard) -> Path:
    """Two boards: one with a kept build of one entry less, and one of a hostile title."""
    board = make_board(names=("target", "retrained", "ga_gdr", "sure"))
    made = board.parent
    out = board / "entries" / "sure.json"
    kept = out.rename(made / "sure.json")
    assert call("leaderboard", "build", str(board)) == 0
    kept.rename(out)
    assert call("leaderboard", "build", "--keep", "2026-01", str(board)) == 0
    other = shutil.copytree(board, made / "other", ignore=shutil.ignore_patterns("archive"))
    text = BOARD.replace("A board of made models", repr(HOSTILE.replace("'", "")).replace("\\", ""))
    (other / "board.yaml").write_text(text, encoding="utf-8")
    for path in other.glob("entries/*.json"):
        entry = path.read_text(encoding="ascii").replace('"board": "made"', '"board": "other"')
        path.write_text(entry, encoding="ascii")
    assert call("leaderboard", "build", str(other)) == 0
    assert call("leaderboard", "index", str(made)) == 0
    return made


def rows_of(folder: Path) -> list[list[str]]:
    text = (folder / "index.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    return [re.sub(r"<[^>]*>", "|", row).strip("|").split("||") for row in rows]


def test_a_board_stands_with_its_finding_and_its_builds(folder: Path) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "At rtn-int4, what was forgotten comes back in 1 of 2 entries: in ga_gdr" in text
    head, now, before, *_ = rows_of(folder)
    assert head[0] == "build"
    assert now[:2] == ["now", "2"]
    assert "sure is new; ga_gdr: 1, now 2" in now
    assert before[:2] == ["2026-01", "1"]
    archive = folder / "made" / "archive" / "2026-01"
    assert "1 of 1 entries" in (archive / "index.html").read_text(encoding="utf-8").replace(
        "1 of 1 entry", "1 of 1 entries"
    )
    assert "sure" not in (archive / "board.csv").read_text(encoding="utf-8")
    for link in re.findall(r'href="([^"]+)"', text):
        assert (folder / link).is_file(), link


def test_the_same_builds_give_the_same_bytes(folder: Path) -> None:
    before = (folder / "index.html").read_bytes()
    assert call("leaderboard", "index", str(folder)) == 0
    assert (folder / "index.html").read_bytes() == before


def test_values_that_moved_are_counted(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "boards")
    path = copy / "made" / "archive" / "2026-01" / "board.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    head = lines[0].strip().split(",")
    cells = lines[1].split(",")
    cells[head.index("value")] = str(float(cells[head.index("value")]) + 7.5)
    lines[1] = ",".join(cells)
    path.write_text("".join(lines), encoding="utf-8")
    assert call("leaderboard", "index", str(copy)) == 0
    assert "1 of 21 values are others, by up to 7.5 points" in " ".join(rows_of(copy)[1])


@pytest.mark.parametrize("name", ["../up", "now", "", "a/b", "2026-01"])
def test_a_name_that_is_none_or_is_taken_keeps_nothing(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(folder.rglob("*"))
    assert call("leaderboard", "build", "--keep", name, str(folder / "made")) == 2
    assert "--keep: " in capsys.readouterr().err
    assert sorted(folder.rglob("*")) == before


def test_what_is_not_built_or_is_no_folder_of_boards_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("leaderboard", "index", str(folder / "made")) == 2
    assert "give the folder of boards above it" in capsys.readouterr().err
    assert call("leaderboard", "index", str(tmp_path)) == 2
    assert "no board.yaml there or below" in capsys.readouterr().err
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "board.yaml").write_text(BOARD, encoding="utf-8")
    assert call("leaderboard", "index", str(tmp_path)) == 2
    assert "run leaderboard build first" in capsys.readouterr().err
    (tmp_path / "new" / "board.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    assert call("leaderboard", "index", str(tmp_path)) == 2
    assert "is no CSV of a board" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 360])
def test_the_index_in_a_browser(browser: Any, folder: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 800}
    found = Opened(browser, folder / "index.html", viewport=size, color_scheme=scheme)
    assert axe(found.page) == []
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    assert found.page.evaluate("window.boomed") == 0
    assert found.page.locator("img, script").count() == 0
    assert found.page.locator("h2 a").count() == 2
    found.close()
