"""Text: answers cut where they stop, and tables, whose cells may come from a stranger: none breaks
its row or moves the cursor.
"""

from __future__ import annotations

from collections.abc import Sequence

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
