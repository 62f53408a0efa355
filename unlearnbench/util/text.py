"""Text: answers cut where they stop, and tables, whose cells may come from a stranger: none breaks
its row or moves the cursor.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from unlearnbench.errors import one_line


def text_table(rows: Sequence[Sequence[object]], head: Sequence[str], style: str = "github") -> str:
    """A table in one of tabulate's styles. Each cell is one printable line; in Markdown
    (``github``) a bar in it is no border.
    """
    from tabulate import tabulate

    def cell(value: object) -> str:
        shown = one_line(value, 2000)
        return shown.replace("|", "\\|") if style == "github" else shown

    return tabulate(
        [[cell(value) for value in row] for row in rows],
        headers=[cell(name) for name in head],
        tablefmt=style,
        disable_numparse=True,
    )


def paint(text: str, colour: str) -> str:
    """Printable text in a colour, where standard output is a terminal and NO_COLOR is not set."""
    import click

    plain = (
        not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    )
    return text if plain else click.style(text, fg=colour)


def terminal_width() -> int:
    """Columns that a table may take: the terminal's, at least 80; 100 where there is none."""
    return max(80, shutil.get_terminal_size((100, 24)).columns)


def fits(table: str, width: int) -> bool:
    """Whether no line is longer."""
    return max(map(len, table.splitlines())) <= width


def fitted_table(rows: Sequence[Sequence[object]], head: Sequence[str], width: int = 0) -> str:
    """``text_table`` where it fits ``width`` columns (0: the terminal's), else a plain table whose
    widest columns are wrapped.
    """
    width = width or terminal_width()
    whole = text_table(rows, head)
    if fits(whole, width):
        return whole
    cells = [[one_line(value, 2000) for value in row] for row in (head, *rows)]
    widths = _widths(cells)
    room = width - 2 * (len(widths) - 1)
    while sum(widths) > room and max(widths) > 8:
        at = widths.index(max(widths))
        next_widest = max([w for w in widths if w < widths[at]], default=8)
        excess = -((room - sum(widths)) // widths.count(widths[at]))
        widths[at] = max(next_widest, widths[at] - excess, 8)
    return plain_table(cells[1:], cells[0], widths)


def plain_table(
    rows: Sequence[Sequence[str]], head: Sequence[str], widths: Sequence[int] | None = None
) -> str:
    """A table without bars, of cells that are printable already; longer cells than ``widths`` are
    wrapped.
    """
    from tabulate import tabulate

    def wrapped(cells: Sequence[str], most: Sequence[int]) -> list[str]:
        # Not tabulate's own wrapping, which takes 6,000,000 for a number and fails.
        lines = (textwrap.wrap(cell, width) for cell, width in zip(cells, most, strict=True))
        return ["\n".join(each) for each in lines]

    if widths and rows:
        head = wrapped(head, [max(width - 2, 1) for width in widths])  # tabulate adds two columns
        rows = [wrapped(row, widths) for row in rows]
    return tabulate(rows, headers=head, tablefmt="simple", disable_numparse=True)


def in_parts(
    names: Sequence[str], lines: Callable[[Sequence[str]], list[list[str]]], width: int
) -> list[list[list[str]]]:
    """Tables of as many of the columns ``names`` as fit ``width`` each; ``lines``: head and rows of
    some of them.
    """
    size = len(names)
    while size > 1 and table_width(lines(names[:size])) > width:
        size -= 1
    return [lines(names[at : at + size]) for at in range(0, len(names), size)]


def table_width(lines: Sequence[Sequence[str]]) -> int:
    """Columns that ``plain_table`` takes for a head and rows that are not wrapped."""
    return sum(_widths(lines)) + 2 * (len(lines[0]) - 1)


def _widths(lines: Sequence[Sequence[str]]) -> list[int]:
    """Of each column; tabulate gives a head two columns more."""
    return [max(len(head) + 2, *map(len, body)) for head, *body in zip(*lines, strict=True)]


def shortened(name: str, width: int) -> str:
    """A name as one printable line of at most ``width`` characters, cut in its middle."""
    shown = one_line(name, 400)
    if len(shown) <= width:
        return shown
    half = (width - 2) // 2
    return f"{shown[: width - 2 - half]}..{shown[len(shown) - half :]}"


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """``text`` up to the first occurrence of any stop string.

    Example:
        >>> cut_at_stop("1472. Question: who?", ("Question:", "."))
        '1472'
    """
    cuts = [at for mark in stop if (at := text.find(mark)) >= 0]
    return text[: min(cuts, default=len(text))]


# The tags that reasoning models put before their thoughts: <think>, [THINK], <seed:think>,
# <thought>, <reasoning>, <|START_THINKING|>.
_TAG = r"[<\[]\|?(?!end)[a-z_:]*(?:think|thinking|thought|reasoning)\|?[>\]]"


def open_thought(prompt: str, answer: str = "") -> str:
    """The tag of the thought that a prompt ends in, or that its answer begins with; empty where
    there is none.

    Example:
        >>> open_thought("assistant: <think> "), open_thought("<think> </think> ")
        ('<think>', '')
    """
    at_end = re.search(rf"({_TAG})\s*$", prompt[-100:], re.IGNORECASE)
    found = at_end or re.match(rf"\s*({_TAG})", answer, re.IGNORECASE)
    return found[1] if found else ""


_PROBE = ("Paris", "London", "the", "The", "two", "in", "of", "No", "Yes")


def joins_blank(tokenizer: Any) -> bool:
    """Whether a blank and the word behind it become one token that holds both, as in byte-level
    BPE. Llama-2's kind, which MUSE was made for, has words without a blank too: its decoder takes
    the blank of the first word off.
    """

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    before = ids("a:")
    for word in _PROBE:
        found = ids(f"a: {word}")
        first = tokenizer.decode(found[len(before) : len(before) + 1])
        if found[: len(before)] == before and first[:1] == " " and first.strip():
            return True
    return False


def blank_in_answer(asked: str, tokenizer: Any) -> bool:
    """Whether the blank behind "Answer:" is the answer's: ``answer``, not ``prompt``; ``auto``: as
    the tokenizer joins. Without a tokenizer it stays in the prompt.
    """
    return asked == "answer" or (
        asked == "auto" and tokenizer is not None and joins_blank(tokenizer)
    )
