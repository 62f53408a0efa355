"""Tables of text. Cells may come from a stranger: none breaks its row or moves the cursor."""

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
