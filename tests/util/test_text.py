from __future__ import annotations

from collections.abc import Sequence

import pytest

from unlearnbench.util.text import fitted_table, in_parts, shortened, table_width, text_table


def test_no_cell_breaks_its_row_or_moves_the_cursor() -> None:
    table = text_table([["a\nb|c", "\x1b[31m", 1.50, None]], ["x|y", "2\n", "3", "4"])
    head, rule, row = table.splitlines()
    assert head.count("|") == row.count("|") == rule.count("|") + 1
    assert "a b\\|c" in row
    assert "\\x1b[31m" in row
    assert table.replace("\n", "").isprintable()
    assert "x|y" in text_table([["a|b"]], ["x|y"], style="plain")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_table_is_wrapped_where_it_does_not_fit(width: int) -> None:
    head = ["name", "here", "what it does"]
    rows = [["a" * 30, "yes", "word " * 40], ["b", "no: pip install it", "c" * 150]]
    shown = fitted_table(rows, head, width)
    assert max(map(len, shown.splitlines())) <= width
    assert shown.count("word") == 40
    assert shown.count("c") >= 150
    assert fitted_table([["a", "b", "c"]], head, width) == text_table([["a", "b", "c"]], head)


def test_columns_go_into_as_few_parts_as_fit() -> None:
    names = [f"name{i}" for i in range(7)]

    def lines(some: Sequence[str]) -> list[list[str]]:
        return [["", *some], ["row", *("1.0" for _ in some)]]

    parts = in_parts(names, lines, 30)
    assert [name for part in parts for name in part[0][1:]] == names
    assert [len(part[0]) - 1 for part in parts] == [3, 3, 1]
    assert max(map(table_width, parts)) == 30
    assert len(in_parts(names, lines, 1)) == 7, "one is always shown"


def test_a_long_name_keeps_both_its_ends() -> None:
    assert shortened("short", 10) == "short"
    assert shortened("unlearned-model-seed0", 10) == "unle..eed0"
