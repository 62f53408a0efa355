"""Rows of forget tasks that are held back, to be relearned and not asked: K of every M.

Data sets keep the questions on one subject together, as TOFU the 20 on an author: with
``5-of-20`` every author loses 5 to relearning, and is asked the other 15.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace

from unlearnbench.errors import OptionError
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import TaskSpec

FORM = r"([1-9][0-9]{0,3})-of-([1-9][0-9]{0,3})"
"""As it is written: K, then M."""


def held_rows(rows: int, held: str, seed: int) -> frozenset[int]:
    """Which of ``rows`` rows are held back: K of every M that follow each other, by a draw; of
    fewer at the end as large a share, rounded down.

    Example:
        >>> [len(held_rows(rows, "2-of-3", 0)) for rows in (3, 4, 5, 6)]
        [2, 2, 3, 4]
    """
    few, many = _numbers(held)
    draws = random.Random(seed)  # noqa: S311  # a seeded generator is the point
    found: list[int] = []
    for start in range(0, rows, many):
        size = min(many, rows - start)
        found += (start + at for at in draws.sample(range(size), min(size, few * size // many)))
    return frozenset(found)


def _numbers(held: str) -> tuple[int, int]:
    match = re.fullmatch(FORM, held)
    assert match is not None  # noqa: S101 - callers know it to be of this form
    return int(match.group(1)), int(match.group(2))


def holds_back(spec: TaskSpec) -> bool:
    """Whether rows of a task can be held back: it has prompts on what should be forgotten."""
    return spec.has_prompts and spec.about == "forget"


def hold_back(tasks: Sequence[TaskSamples], held: str, seed: int) -> list[TaskSamples]:
    """The tasks without the samples that are held back. Raises OptionError where no task can hold
    any back, K is not below M, or a task has none left.
    """
    few, many = _numbers(held)
    if few >= many:
        raise OptionError(f"--relearn-on {held}: use fewer of every {many}, so that some are asked")
    if not any(holds_back(task.spec) for task in tasks):
        raise OptionError(f"--relearn-on {held}: none of the tasks has prompts on forget rows")
    found = []
    for task in tasks:
        if holds_back(task.spec):
            split = task.spec.own_split
            gone = held_rows(len(task.splits[split].rows), held, seed)
            away = {f"{split}/{row}" for row in gone}
            left = tuple(sample for sample in task.samples if sample.id not in away)
            if not left:
                raise OptionError(
                    f"--relearn-on {held}: {task.spec.task} has no sample left; raise --limit"
                )
            task = replace(task, samples=left)
        found.append(task)
    return found
