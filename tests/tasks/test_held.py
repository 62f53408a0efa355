"""Rows that are held back: so many of each block, the same every time, and never all."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.conditions.test_asking import toy_task
from tests.conftest import Toy
from unlearnbench.errors import OptionError
from unlearnbench.tasks.held import FORM, held_rows, hold_back
from unlearnbench.tasks.kinds.generate import place_blanks
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples


@pytest.mark.parametrize(
    ("rows", "held", "counts"),
    [(60, "5-of-20", [5, 5, 5]), (48, "1-of-3", [1] * 16), (7, "2-of-3", [2, 2, 0])],
)
def test_each_block_gives_so_many(rows: int, held: str, counts: list[int]) -> None:
    many = int(held.split("-")[2])
    for seed in range(5):
        found = held_rows(rows, held, seed)
        blocks = [sum(at // many == block for at in found) for block in range(len(counts))]
        assert blocks == counts
        assert found == held_rows(rows, held, seed)
        assert found <= {*range(rows)}
    assert len({held_rows(rows, held, seed) for seed in range(5)}) > 1


def test_other_tasks_are_asked_whole(toy: Toy) -> None:
    task = toy_task(toy)
    retain = replace(task, spec=task.spec.model_copy(update={"want": "high"}))
    before = [task, retain, toy_task(toy, "toy_privleak")]
    after = hold_back(before, "1-of-3", 0)
    gone = held_rows(len(before[0].samples), "1-of-3", 0)
    kept = [s for i, s in enumerate(before[0].samples) if i not in gone]
    assert 0 < len(kept) < len(before[0].samples)
    assert [*after[0].samples] == kept
    assert after[1:] == before[1:]


def test_the_version_without_a_blank_asks_the_same_rows() -> None:
    spec = load_registry().tasks["demo_knowmem_f"]
    spec = spec.model_copy(update={"version_without_blank": 9.0})
    (kept,) = hold_back([load_samples(spec, DataOptions(), 30)], "1-of-3", 0)
    (moved,) = place_blanks([kept], "answer", None, 30)
    assert [s.id for s in moved.samples] == [s.id for s in kept.samples]
    assert len(moved.samples) == 20
    assert moved.spec != kept.spec


def test_what_is_refused(toy: Toy) -> None:
    with pytest.raises(OptionError, match="3-of-3: use fewer of every 3"):
        hold_back([toy_task(toy)], "3-of-3", 0)
    with pytest.raises(OptionError, match="none of the tasks has prompts on forget rows"):
        hold_back([toy_task(toy, "toy_privleak")], "1-of-3", 0)
    for name in ("0-of-3", "1-of-0", "01-of-3", "1-of-3.txt", "1-of-99999"):
        assert re.fullmatch(FORM, name) is None
    task = toy_task(toy)
    away = {f"forget_qa/{row}" for row in held_rows(3, "2-of-3", 0)}
    few = replace(task, samples=tuple(s for s in task.samples if s.id in away))
    with pytest.raises(OptionError, match="toy_knowmem_f has no sample left; raise --limit"):
        hold_back([few], "2-of-3", 0)
