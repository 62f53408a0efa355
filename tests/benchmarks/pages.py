"""Tables of a page, each between its marks, made anew from stored figures."""

from __future__ import annotations

from collections.abc import Mapping


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """The page with every table between ``<!-- name -->`` and ``<!-- end of name -->`` replaced."""
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, rest = page.split(start)
        page = f"{before}{start}{table}\n{end}{rest.split(end)[1]}"
    return page
