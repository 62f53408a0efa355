"""The command ``push``: run folders and board entries to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from unlearnbench.boards.hub import describe, plan_upload, push
from unlearnbench.cli.options import PushOptions
from unlearnbench.errors import printable


@click.command("push")
@click.argument("paths", nargs=-1, required=True, metavar="RUN|ENTRY...")
@click.option("--to", "repo", required=True, metavar="REPO", help="A data set repository.")
@click.option("--dry-run", "dry", is_flag=True, help="Only show what would leave the machine.")
@click.option("--public", is_flag=True, help="A new repository is public, not private.")
def push_command(paths: Sequence[str], repo: str, dry: bool, public: bool) -> None:
    """Push run folders and board entries to the Hugging Face hub.

    A run folder holds its prompts, targets and the model's raw outputs; --dry-run lists what goes.
    """
    given = {"push_to_hub": repo, "push_dry_run": dry, "push_public": public}
    push_paths([Path(path) for path in paths], repo, PushOptions.of(given))


def push_paths(paths: Sequence[Path], repo: str, options: PushOptions) -> None:
    """Show what leaves the machine, and push it unless that is all that was asked for."""
    uploads = plan_upload(paths)
    click.echo(printable(describe(uploads, repo, not options.push_public)))
    if options.push_dry_run:
        click.echo("dry run: nothing was sent")
        return
    click.echo(printable(f"pushed: {push(uploads, repo, not options.push_public)}"))
