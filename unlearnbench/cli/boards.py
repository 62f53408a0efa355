"""``leaderboard``: boards of entries."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import click

from unlearnbench.boards import Board, add_entry, find_boards, read_board
from unlearnbench.boards.entry import Submission
from unlearnbench.boards.index import keep_build, write_index
from unlearnbench.boards.rewrite import rewrite_board
from unlearnbench.boards.tables import build_board
from unlearnbench.boards.verify import verify_board
from unlearnbench.cli.options import PushOptions, field_options, taken
from unlearnbench.cli.runs import push_paths
from unlearnbench.errors import printable
from unlearnbench.results import Role


@click.group("leaderboard")
def leaderboard() -> None:
    """Boards of entries: add one, build tables and page, verify."""


@leaderboard.command("add")
@click.argument("runs", nargs=-1, required=True, metavar="RUN...")
@click.option("--board", "folder", required=True, metavar="DIR", help="Folder with board.yaml.")
@click.option("--name", required=True, metavar="NAME", help="Of the entry and of its file.")
@click.option(
    "--role",
    type=click.Choice(get_args(Role)),
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


@leaderboard.command("rewrite")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
def rewrite(folders: Sequence[str]) -> None:
    """Write older entries as `add` writes them today; DIR is a board or holds boards.

    Of each sample the score that decides is kept, in columns, and intervals that an older version
    computed are replaced from the entries' own records. Where an entry does not verify, nothing
    is changed.
    """
    for board in _boards(folders):
        for path, before, after in rewrite_board(board):
            click.echo(printable(f"{path}: {before:,} to {after:,} bytes"))


@leaderboard.command("build")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
@click.option("--keep", metavar="NAME", help="First keep what was built before, in archive/NAME.")
def build(folders: Sequence[str], keep: str | None) -> None:
    """Write each board's README.md, board.csv and index.html; DIR is a board or holds boards.

    With --keep the page and the CSV of the last build stay beside the new ones, to compare with;
    `leaderboard index` lists them.
    """
    for board in _boards(folders):
        kept = [] if keep is None else keep_build(board, keep)
        click.echo(printable("\n".join(map(str, [*kept, *build_board(board)]))))


@leaderboard.command("index")
@click.argument("folder", default="leaderboards", metavar="[DIR]")
def index(folder: str) -> None:
    """Write DIR/index.html: the boards below DIR, what each found, and their builds."""
    click.echo(printable(str(write_index(Path(folder)))))


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
