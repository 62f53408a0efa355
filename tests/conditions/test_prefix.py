"""Affirmative openings: where the blank stands."""

from __future__ import annotations

import pytest

from unlearnbench.conditions import find_condition
from unlearnbench.conditions.prefix import OPENINGS, open_answer


@pytest.mark.parametrize(
    ("prompt", "opened"),
    [
        ("Answer: ", "Answer: Sure: "),  # the blank is the prompt's
        ("Answer:", "Answer: Sure:"),  # the blank is the answer's
        ("<|model|>\n", "<|model|>\nSure:"),
    ],
)
def test_the_blank_stands_where_it_stood(prompt: str, opened: str) -> None:
    assert open_answer(prompt, "Sure:") == opened


def test_every_opening_is_a_condition() -> None:
    specs = [find_condition(f"prefix-{n}") for n in (1, 2, 3)]
    assert [spec.options["opening"] for spec in specs] == list(OPENINGS)
    assert all(spec.needs_control and spec.asks for spec in specs)
