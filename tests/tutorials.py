"""The tutorials of docs/tutorials as a reader follows them: their files are written, their commands
and their Python run, in order.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cli.test_main import call

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "tutorials"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
_EXIT = re.compile(r"\s+# exit (\d)$")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is, what it holds."""

    language: str
    title: str
    text: str


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page's text."""
    return [Block(*found) for found in _BLOCK.findall(page)]


def commands(block: Block) -> Iterator[tuple[list[str], int]]:
    """Each command's words, and the exit status that is expected of it."""
    for line in block.text.splitlines():
        found = _EXIT.search(line)
        words = shlex.split(line, comments=True)
        assert words[:1] == ["unlearnbench"], line
        yield words[1:], int(found[1]) if found else 0


def follow(page: Path) -> int:
    """Do all that a page says, in the current folder; the number of commands."""
    text, done = page.read_text(encoding="utf-8"), 0
    for block in blocks(text):
        if block.title:
            Path(block.title).parent.mkdir(parents=True, exist_ok=True)
            Path(block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "sh":
            for words, status in commands(block):
                known = [
                    sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in words
                ]
                assert all(known), f"{page.name}: {words}: a pattern fits nothing"
                assert call(*[word for each in known for word in each]) == status, words
                done += 1
        elif block.language == "python":
            exec(compile(block.text, str(page), "exec"), {})
        else:
            assert "not run here" in text, f"{page.name}: a block is neither a file nor run"
    return done
