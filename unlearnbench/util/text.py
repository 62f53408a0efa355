"""Text: answers cut where they stop, and tables, whose cells may come from a stranger: none breaks
its row or moves the cursor.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
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
