"""Every command line in README and docs is one that the command takes."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.tutorials import FOLDER, blocks, commands
from unlearnbench.cli.main import cli

ROOT = Path(__file__).parents[2]
_LINE = re.compile(r"^ {4}(?:accelerate launch .*?-m )?unlearnbench(?= )(.*)$", re.MULTILINE)


def command_lines() -> Iterator[tuple[str, str]]:
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for found in _LINE.findall(path.read_text(encoding="utf-8").replace("\\\n", " ")):
            if " ... " not in f"{found} " and "|" not in found:
                yield path.name, found.strip()
    for path in sorted(FOLDER.glob("*.md")):
        for block in blocks(path.read_text(encoding="utf-8")):
            for words, _ in commands(block) if block.language == "sh" else ():
                if not any("softly" in word for word in words):  # the tutorial's own method
                    yield path.name, shlex.join(words)


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_a_command_line_of_the_docs_is_taken(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    command: click.Command | None = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        command, words = command.get_command(click.Context(command), words[0]), words[1:]
    assert command is not None
    # click refuses an option that there is not, a word that is not among its choices, what is
    # missing; --help ends the command.
    normalize = cli.context_settings["token_normalize_func"]
    with contextlib.suppress(click.exceptions.Exit):
        command.make_context("unlearnbench", words, token_normalize_func=normalize)


def test_what_is_no_tutorial_is_marked_as_not_run() -> None:
    """The tutorials are followed in tests/demo/test_demo.py."""
    for name in ("README.md", "docs/index.md"):
        assert "not run here" in " ".join((ROOT / name).read_text(encoding="utf-8").split())


def test_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
