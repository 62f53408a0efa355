"""The commands below ``leaderboard``: add, build, verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unlearnbench.cli.push import push_options, push_paths, require_pushable
from unlearnbench.errors import printable

if TYPE_CHECKING:
    from unlearnbench.boards import Board


@click.group("leaderboard")
def leaderboard() -> None:
    """Boards of entries: add one, build the tables and the page, verify."""


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
@push_options
def add_command(
    runs: Sequence[str],
    folder: str,
    name: str,
    role: str,
    note: str,
    no_texts: bool,
    push_to_hub: str | None,
    push_dry_run: bool,
    push_public: bool,
) -> None:
    """Make an entry from a checkpoint's run folders."""
    from unlearnbench.boards import add_entry, read_board
    from unlearnbench.boards.entry import Submission

    require_pushable(push_to_hub, push_dry_run, push_public)
    submission = Submission(name, role, note, not no_texts)  # type: ignore[arg-type]  # a Choice
    path = add_entry(read_board(Path(folder)), [Path(run) for run in runs], submission)
    click.echo(printable(str(path)))
    if push_to_hub is not None:
        push_paths([path], push_to_hub, push_dry_run, push_public)


@leaderboard.command("build")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
def build_command(folders: Sequence[str]) -> None:
    """Write each board's README.md, board.csv and index.html; DIR is a board or holds boards."""
    from unlearnbench.boards.tables import build_board

    for board in _boards(folders):
        for path in build_board(board):
            click.echo(printable(str(path)))


@leaderboard.command("verify")
@click.argument("folders", nargs=-1, metavar="[DIR...]")
def verify_command(folders: Sequence[str]) -> int:
    """Recompute every entry: exit 0 all hold, 1 one does not."""
    from unlearnbench.boards.verify import verify_board

    bad = 0
    for board in _boards(folders):
        for verdict in verify_board(board)[1]:
            wrong = [*verdict.missing, *verdict.problems]
            click.echo(printable(f"{board.name}/{verdict.name}: {_say(wrong)}"))
            for kind, lines in (("wrong", wrong), ("note", verdict.notes)):
                for line in dict.fromkeys(lines):
                    click.echo(printable(f"  {kind}: {' '.join(line.split())}"))
            bad += bool(wrong)
    return 1 if bad else 0


def _say(problems: Sequence[str]) -> str:
    return "does not verify" if problems else "verified"


def _boards(folders: Sequence[str]) -> list[Board]:
    from unlearnbench.boards import find_boards

    own = Path("leaderboards")
    if not folders and next(own.glob("*/board.yaml"), None) is None:
        click.echo("no board is defined in leaderboards/ yet")
        return []
    return find_boards([Path(folder) for folder in folders] or [own])


COMMANDS = (leaderboard,)
