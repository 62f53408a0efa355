"""Hints are of the question's subject, and never hold its answer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.conditions.test_asking import records_of, toy_task
from tests.conftest import Toy, write_jsonl
from unlearnbench import evaluate
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.hints import ask, rank
from unlearnbench.conditions.texts import Spelled
from unlearnbench.errors import PrecisionError

TEXTS = [
    "Question: Who leads Krerbridge?\nAnswer: Ann Vale",
    "Question: Who leads Tellmouth?\nAnswer: Bo Dane",
    "Question: How many signed in Krerbridge?\nAnswer: 367",
    "Question: How large is Krerbridge?\nAnswer: 9 km",
]
QUESTIONS = [text.partition("Answer")[0] for text in TEXTS]


@pytest.mark.parametrize(
    ("text", "answer", "held"),
    [
        ("It cost £65,000 in all", "£65,000", True),
        ("It cost 65 000", "£65,000", True),
        ("IT COST ﬁve", "five", True),  # a ligature
        ("Ann  Vale", "ann vale.", True),
        ("Ann of Vale", "Ann Vale", False),
        ("unknowable", "know", True),  # within a word
        ("a knot", "no", False),
        ("yes, no", "no", True),
        ("東京都に行った", "東京都", False),  # three letters, within what is one word
        ("彼は東京都庁に行った", "東京都庁", True),
        ("anything", "...", True),  # an answer without words cannot be kept out
        ("", "word", False),
    ],
)
def test_what_holds_an_answer(text: str, answer: str, held: bool) -> None:
    assert Spelled.of(text).holds(Spelled.of(answer)) is held


def test_rows_that_share_the_rarest_words_come_first() -> None:
    # "krerbridge" is in three of four rows, "who leads" in two, "how" in two.
    asked = dict(enumerate(QUESTIONS))
    ranked = [row for _, row in rank(asked, TEXTS, 0)]
    place, pair = math.log(4 / 3), math.log(4 / 2)
    worth = {1: 2 * pair, 2: place, 3: place}
    assert ranked[0] == sorted(worth, key=lambda n: -worth[n]) or ranked[0] == [1, 3, 2]
    assert ranked[2][0] == 3  # how, krerbridge
    assert all(at not in row and len(row) == 3 for at, row in enumerate(ranked))
    ties = {tuple(dict(rank(asked, TEXTS, seed))[0]) for seed in range(20)}
    assert ties == {(1, 2, 3), (1, 3, 2)}  # drawn among the alike alone
    assert [*rank(asked, TEXTS, 7)] == [*rank(asked, TEXTS, 7)]
    assert [*rank({2: QUESTIONS[2]}, TEXTS, 0)] == [(2, ranked[2])], "only what is asked"


def test_the_answer_is_never_shown(tiny: Path, toy: Toy) -> None:
    """Nor does it say which rows come first: another answer, the same hints."""
    rows = [{"question": f"Which gate is {n}?", "answer": f"gate {n}"} for n in (0, 1, 2)]
    rows[0]["answer"] = "Which"  # which every other row holds
    write_jsonl(toy.data / "toy/set/knowmem/forget_qa.jsonl", rows)
    with pytest.raises(PrecisionError, match=r"forget_qa/0: only 0 other rows do not hold"):
        ask(find_condition("hints-1"), toy_task(toy))
    rows[0]["answer"] = "nothing"
    write_jsonl(toy.data / "toy/set/knowmem/forget_qa.jsonl", rows)
    (result,) = evaluate(str(tiny), "toy_knowmem_f", "hints-2", **toy.options)
    assert result.condition.options.further["hints"] == 2
    for record in records_of(toy, result):
        assert record.asked is not None
        assert record.asked.prompt is not None
        assert record.asked.rows is not None
        own = int(record.id[-1])
        assert {*record.asked.rows} == {f"forget_qa/{n}" for n in range(3) if n != own}
        shots = record.prompt.split("Question: ")
        shown = [f"{rows[int(r[-1])]['question']}\nAnswer: {rows[int(r[-1])]['answer']}\n\n"
                 for r in record.asked.rows]  # fmt: skip
        assert record.asked.prompt.split("Question: ") == [*shots[:-1], *shown, shots[-1]]


def test_hints_come_from_all_rows_whatever_the_limit(tiny: Path, toy: Toy) -> None:
    (result,) = evaluate(str(tiny), "toy_knowmem_f", "hints-2", **toy.options, limit=1)
    (record,) = records_of(toy, result)
    assert record.asked is not None
    assert {*(record.asked.rows or ())} == {"forget_qa/1", "forget_qa/2"}


def test_too_many_hints_are_refused(toy: Toy) -> None:
    with pytest.raises(PrecisionError, match="only 2 other rows do not hold its answer"):
        ask(find_condition("hints-3"), toy_task(toy))


@pytest.mark.parametrize(
    ("text", "answer", "said"),
    [
        ("It cost 65000 pounds", "65,000", True),
        ("It cost 65 000 pounds", "65,000", True),
        ("as was planned", "Anne", False),
        ("a plan; never", "Anne", False),
        ("Anne was there, Anne!", "anne", True),
        ("banana Ana", "ana", True),
    ],
)
def test_what_is_said_in_whole_words(text: str, answer: str, said: bool) -> None:
    assert Spelled.of(text).says(Spelled.of(answer)) is said
