"""The commands below ``leaderboard``: add, build, verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from unlearnbench.boards import Board, add_entry, find_boards, read_board
from unlearnbench.boards.entry import Submission
from unlearnbench.boards.tables import build_board
from unlearnbench.boards.verify import verify_board
from unlearnbench.cli.options import PushOptions, field_options, taken
from unlearnbench.cli.runs import push_paths
from unlearnbench.errors import printable


@click.group("leaderboard")
def leaderboard() -> None:
    """Boards of entries: add one, build tables and page, verify."""


@leaderboard.command("add")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--board", "folder", required=True, metavar="DIR", help="Folder with board.yaml.")
@click.option("--name", required=True, metavar="NAME", help="Of the entry and of its file.")
@click.option(
    "--role",
    type=click.Choice(["unlearned", "target", "retrained"]),
    default="unlearned",
    show_default=True,
)
@click.option("--note", default="", metavar="TEXT", help="Method, hyperparameters, provenance.")
@click.option("--no-texts", is_flag=True, help="Scores and salted hashes in place of texts.")
@field_options(PushOptions)
def add(
    runs: Sequence[str], folder: str, name: str, note: str, no_texts: bool, **given: Any
) -> None:
    """Make an entry from a checkpoint's run folders."""
    options = taken(PushOptions, given)
    submission = Submission(name, given["role"], note, not no_texts)
    path = add_entry(read_board(Path(folder)), [Path(run) for run in runs], submission)
    click.echo(printable(str(path)))
    push_paths([path], options)


@leaderboard.command("build")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
def build(folders: Sequence[str]) -> None:
    """Write each board's README.md, board.csv and index.html; DIR is a board or holds boards."""
    for board in _boards(folders):
        for path in build_board(board):
            click.echo(printable(str(path)))


@leaderboard.command("verify")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
def verify(folders: Sequence[str]) -> int:
    """Recompute every entry: exit 0 all hold, 1 one does not."""
    status = 0
    for board in _boards(folders):
        for verdict in verify_board(board)[1]:
            wrong = [*verdict.missing, *verdict.problems]
            said = "does not verify" if wrong else "verified"
            click.echo(printable(f"{board.name}/{verdict.name}: {said}"))
            for kind, lines in (("wrong", wrong), ("note", verdict.notes)):
                for line in dict.fromkeys(lines):
                    click.echo(printable(f"  {kind}: {' '.join(line.split())}"))
            status = 1 if wrong else status
    return status


def _boards(folders: Sequence[str]) -> list[Board]:
    own = Path("leaderboards")
    if not folders and next(own.glob("*/board.yaml"), None) is None:
        click.echo("no board is defined in leaderboards/ yet")
        return []
    return find_boards([Path(folder) for folder in folders] or [own])
