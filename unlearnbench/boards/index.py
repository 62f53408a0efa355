"""The boards of a folder on one page that a web server can serve as it is, with the builds of each
that were kept. It reads what ``build`` wrote and computes nothing anew.
"""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from unlearnbench.boards.entry import Board, find_boards
from unlearnbench.boards.page import render
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.results import ANCHORS
from unlearnbench.util.files import read_bytes, write_text

NOW = "now"
_KEPT = ("index.html", "board.csv")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LARGEST = 64 * 2**20
_MOVED = 0.05
"""Points from which a value counts as another: half of the last digit that tables show."""
Rows = dict[tuple[str, str, str], dict[str, str]]


@dataclass(frozen=True)
class Build:
    """A page and a CSV of a board."""

    name: str
    """``now``, or what it was kept as."""
    path: str
    """Of its folder, from the index."""
    finding: str
    entries: int
    first: str
    """Who is ranked first."""
    since: str
    """What is other than in the build before it."""


def keep_build(board: Board, name: str) -> list[Path]:
    """Copy the board's page and CSV, as they are, to ``archive/name``.

    Raises:
        OptionError: a name that is no plain one or that is taken, or nothing was built yet.
        ResultError: a file cannot be read or written.
    """
    if not _NAME.fullmatch(name) or name == NOW:
        raise OptionError(f"--keep: {name!r} is no name; give letters, digits and . _ -")
    folder = board.folder / "archive" / name
    if folder.exists():
        raise OptionError(f"--keep: {folder} is there already; a kept build stays as it is")
    missing = [file for file in _KEPT if not (board.folder / file).is_file()]
    if missing:
        raise OptionError(f"--keep: {board.folder} has no {missing[0]} yet; build it first")
    texts = {file: _read(board.folder / file) for file in _KEPT}
    for file, text in texts.items():
        write_text(folder / file, text)
    return [folder / file for file in texts]


def write_index(folder: Path) -> Path:
    """Write ``folder/index.html``.

    Raises:
        OptionError: no board is below the folder, it is a board itself, or one is not built.
        ResultError: a file of a board cannot be read.
    """
    if (folder / "board.yaml").is_file():
        raise OptionError(f"{folder} is a board; give the folder of boards above it")
    boards = find_boards([folder])
    shown = [(board.name, board.rules, builds(board)) for board in boards]
    path = folder / "index.html"
    write_text(path, render("index.html.j2", "", boards=shown))
    return path


def builds(board: Board) -> list[Build]:
    """The board's builds, the latest first; kept ones by name, so names of dates go by time."""
    kept = sorted(path for path in (board.folder / "archive").glob("*") if path.is_dir())
    found, before = list[Build](), None
    for folder in (*kept, board.folder):
        name = NOW if folder == board.folder else folder.name
        rows = _rows(folder / "board.csv")
        names = {row["entry"] for row in rows.values() if not _is_reference(row)}
        ranked = [row["entry"] for row in rows.values() if row["rank"] == "1"]
        since = "" if before is None else _since(before, rows)
        path = board.name if name == NOW else f"{board.name}/archive/{name}"
        first = ", ".join(dict.fromkeys(ranked))
        found.append(Build(name, path, _finding(folder), len(names), first, since))
        before = rows
    return found[::-1]


def _is_reference(row: dict[str, str]) -> bool:
    return row["state"] in ANCHORS


def _rows(path: Path) -> Rows:
    """Its rows by entry, task and precision. Raises OptionError where it is none of ours."""
    if not path.is_file():
        raise OptionError(f"{path} is missing; run leaderboard build first")
    found = list(csv.DictReader(io.StringIO(_read(path))))
    wanted = ("entry", "task", "precision", "state", "rank", "value")
    if not found or any(row.get(name) is None for row in found for name in wanted):
        raise OptionError(f"{path} is no CSV of a board; run leaderboard build again")
    return {(row["entry"], row["task"], row["precision"]): row for row in found}


def _since(before: Rows, now: Rows) -> str:
    """What changed, in words."""
    old, new = (
        {row["entry"]: row["rank"] or row["state"] for row in rows.values()}
        for rows in (before, now)
    )
    said = [f"{name} is new" for name in sorted(new.keys() - old.keys())]
    said += [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
    both = sorted(old.keys() & new.keys())
    said += [f"{n}: {old[n]}, now {new[n]}" for n in both if old[n] != new[n]]
    lines = before.keys() & now.keys()
    apart = [abs(float(before[at]["value"]) - float(now[at]["value"])) for at in lines]
    moved = [x for x in apart if x >= _MOVED]
    if moved:
        most = max(moved)
        said.append(f"{len(moved)} of {len(lines)} values are others, by up to {most:.1f} points")
    return "; ".join(said) or "the same entries, ranks and values"


class _Description(HTMLParser):
    """What a page says of itself."""

    found = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "meta" and given.get("name") == "description":
            self.found = given.get("content") or ""


def _finding(folder: Path) -> str:
    """The sentence that a build's page leads with; none of a page from before there was one."""
    parser = _Description()
    parser.feed(_read(folder / "index.html").partition("<style>")[0])
    return parser.found


def _read(path: Path) -> str:
    try:
        return read_bytes(path, ResultError, _LARGEST).decode("utf-8")
    except UnicodeDecodeError:
        raise ResultError(f"{path} is no UTF-8 text; build the board again") from None
