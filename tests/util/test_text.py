from __future__ import annotations

from unlearnbench.util.text import text_table


def test_no_cell_breaks_its_row_or_moves_the_cursor() -> None:
    table = text_table([["a\nb|c", "\x1b[31m", 1.50, None]], ["x|y", "2\n", "3", "4"])
    head, rule, row = table.splitlines()
    assert head.count("|") == row.count("|") == rule.count("|") + 1
    assert "a b\\|c" in row
    assert "\\x1b[31m" in row
    assert table.replace("\n", "").isprintable()
    assert "x|y" in text_table([["a|b"]], ["x|y"], style="plain")
