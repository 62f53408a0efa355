"""``push`` and the options of other commands that push what they made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from unlearnbench.errors import OptionError, printable

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "--push-to-hub", metavar="REPO", help="Push to this data set repository; off by default."
    ),
    click.option("--push-dry-run", is_flag=True, help="Only show what would leave the machine."),
    click.option("--push-public", is_flag=True, help="A new repository is public, not private."),
)


def push_options(command: F) -> F:
    """Where to push, if anywhere."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def require_pushable(repo: str | None, dry: bool, public: bool) -> None:
    """Raise OptionError for a bad repository name, before anything is computed."""
    if repo is None:
        if dry or public:
            raise OptionError("--push-dry-run and --push-public need --push-to-hub REPO")
        return
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise OptionError(f"--push-to-hub: {error}") from None


def push_paths(paths: Sequence[Path], repo: str, dry: bool, public: bool) -> None:
    """Show what leaves the machine, and unless ``dry`` push it."""
    from unlearnbench.boards.hub import describe, plan_upload, push

    uploads = plan_upload(paths)
    click.echo(printable(describe(uploads, repo, not public)))
    if dry:
        click.echo("dry run: nothing was sent")
        return
    click.echo(printable(f"pushed: {push(uploads, repo, not public)}"))


@click.command("push")
@click.argument("paths", nargs=-1, required=True, metavar="RUN|ENTRY...")
@click.option("--to", "repo", required=True, metavar="REPO", help="A data set repository.")
@click.option("--dry-run", "dry", is_flag=True, help="Only show what would leave the machine.")
@click.option("--public", is_flag=True, help="A new repository is public, not private.")
def push_command(paths: Sequence[str], repo: str, dry: bool, public: bool) -> None:
    """Push run folders and board entries to the Hugging Face hub.

    A run folder holds its prompts, targets and the model's raw outputs; --dry-run lists what goes.
    """
    require_pushable(repo, False, False)
    push_paths([Path(path) for path in paths], repo, dry, public)


COMMANDS = (push_command,)
