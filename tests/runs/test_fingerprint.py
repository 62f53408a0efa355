from __future__ import annotations

import json

import pytest

from tests.test_results import SHA, make_result
from unlearnbench.results import SplitData
from unlearnbench.runs.fingerprint import Fingerprint, differences

OTHER = "f" * 64


def part(split: str, sha256: str = SHA, **changes: object) -> SplitData:
    facts = {"split": split, "rows": 3, "sha256": sha256, "source": "local"}
    return SplitData.model_validate(facts | changes)


def task(*parts: SplitData, version: float = 1.0, definition: str = SHA) -> Fingerprint:
    return Fingerprint.of_task(version, definition, parts)


def test_a_fingerprint_that_was_written_and_read_is_the_same() -> None:
    facts = {"limit": 0.5, "seed": 0, "ids": ("a", "b"), "gone": None, "lone": "\ud800"}
    made = Fingerprint.of(facts)
    again = Fingerprint(json.loads(json.dumps(dict(made.facts))))
    assert again == made
    assert again.sha256 == made.sha256
    assert Fingerprint.of({**facts, "seed": 1}).sha256 != made.sha256
    assert differences(made, again) == []


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ({"seed": 0}, {"seed": 7}, "seed is 0 there and 7 here"),
        ({}, {"limit": 2}, "limit is absent there and 2 here"),
        ({"limit": 2}, {"limit": None}, "limit is 2 there and absent here"),
        (
            {"weights": SHA},
            {"weights": OTHER},
            f"weights is {SHA[:12]} there and ffffffffffff here",
        ),
        ({"note": "a\nb"}, {"note": "x" * 99}, f"note is a b there and {'x' * 77}... here"),
    ],
)
def test_what_differs_is_said_in_one_line(
    there: dict[str, object], here: dict[str, object], said: str
) -> None:
    same = {"protocol": "muse"}
    assert differences(Fingerprint.of(same | there), Fingerprint.of(same | here)) == [said]


def test_all_that_differs_is_said() -> None:
    there, here = Fingerprint.of({"a": 1, "b": 2, "c": 3}), Fingerprint.of({"b": 1, "c": 3, "d": 4})
    assert [line.split(" is ")[0] for line in differences(there, here)] == ["b", "d", "a"]


def test_where_rows_came_from_does_not_matter_and_their_content_does() -> None:
    assert task(part("a"), part("b")) == task(part("b"), part("a", source="hub", drift="some"))
    for other, said in [
        (task(part("a", OTHER), part("b")), "data of split 'a' is ffffffffffff there and"),
        (task(part("b")), "data of split 'a' is absent there and 0123456789ab here"),
        (task(part("a"), part("b"), part("c")), "data of split 'c' is 0123456789ab there and abse"),
        (task(part("a"), part("b"), version=2.0), "task version is 2.0 there and 1.0 here"),
        (task(part("a"), part("b"), definition=OTHER), "task definition is ffffffffffff there"),
    ]:
        (line,) = differences(other, task(part("a"), part("b")))
        assert line.startswith(said)


def test_samples_are_the_same_in_one_order() -> None:
    made = Fingerprint.of_samples("texts", ["a", "b"])
    assert made == Fingerprint.of_samples("texts", ("a", "b"))
    assert differences(Fingerprint.of_samples("texts", ["b", "a"]), made) == [
        "number 1 of the texts is b there and a here",
        "number 2 of the texts is a there and b here",
    ]
    first = differences(Fingerprint.of_samples("texts", ["a"]), made)[0]
    assert first == "number of texts is 1 there and 2 here"


def test_the_kernel_is_a_part_of_a_run_and_not_of_what_was_done_to_the_weights() -> None:
    found = make_result()
    dense = found.condition.options.model_copy(update={"kernel": "dequantized"})
    other = found.condition.model_copy(update={"options": dense})
    assert Fingerprint.of_condition(other) == Fingerprint.of_condition(found.condition)
    there, here = (
        Fingerprint.of_run(found.checkpoint, found.settings, how)
        for how in (found.condition, other)
    )
    assert differences(there, here) == ["quant-kernel is absent there and dequantized here"]
