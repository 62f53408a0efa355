"""Names and numbers by the rule."""

from __future__ import annotations

import pytest

from unlearnbench.training.names import names_of, numbers_of


def shown(*texts: str) -> list[list[str]]:
    spans = names_of(texts)
    return [[t[a:b] for a, b in own] for t, own in zip(texts, spans, strict=True)]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Ada Lovelace met Charles Babbage.", ["Ada Lovelace", "Charles Babbage"]),
        ("The keeper of Port Saint-Mary left.", ["Port Saint-Mary"]),
        ("He read at the University of York in May.", ["University of York", "May"]),
        ("Nothing. Then I said it.", ["Nothing"]),
        ("They saw the Bank of the", ["Bank"]),
        ("In Москве жил Пушкин, not Zürich.", ["Москве", "Пушкин", "Zürich"]),
        ("no name here", []),
        ("", []),
    ],
)
def test_runs_of_large_words_are_names(text: str, names: list[str]) -> None:
    assert shown(text) == [names]


def test_what_the_texts_have_in_small_letters_begins_a_sentence_as_a_word() -> None:
    first, second = "Harbours sleep. Ada knew.", "The harbours of Ostrava."
    assert shown(first) == [["Harbours", "Ada"]]
    assert shown(first, second) == [["Ada"], ["Ostrava"]]


def test_numbers_take_what_stands_between_their_figures() -> None:
    text = "On 12.5.1999 at 10:45, 3,000 men; gate 7."
    assert [text[a:b] for a, b in numbers_of(text)] == ["12.5.1999", "10:45", "3,000", "7"]
