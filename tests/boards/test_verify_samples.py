"""Which samples a run with given settings asks."""

from __future__ import annotations

import pytest

from tests.tasks.kinds.test_answer_membership import FILE, SETTINGS
from unlearnbench.boards.entry import EntryRun
from unlearnbench.boards.verify_samples import sample_problems
from unlearnbench.results import LikelihoodRecord, RunResult, TaskResult
from unlearnbench.tasks.held import held_rows
from unlearnbench.tasks.kinds.answer_membership import TASK

ROWS = 6
SPEC = TASK.model_validate({**FILE, "splits": {"in": {"rows": ROWS}, "out": {"rows": ROWS}}})


def part(held: str | None, away: set[str], n: int) -> EntryRun:
    """A run's samples but for those named."""
    ids = [f"{split}/{i}" for split in ("in", "out") for i in range(ROWS)]
    figure = {SPEC.attack: 1.0}
    records = tuple(
        LikelihoodRecord(task=SPEC.task, id=name, split=name.split("/")[0], scores=figure)
        for name in ids
        if name not in away
    )
    settings = SETTINGS.model_copy(update={"held_back": held})
    result = TaskResult.model_construct(n=n, want="zero", scores={})
    run = RunResult.model_construct(settings=settings, tasks={SPEC.task: result})
    return EntryRun.model_construct(run=run, samples={SPEC.task: records})


def test_rows_are_held_back_of_what_is_to_be_forgotten_alone() -> None:
    away = {f"in/{i}" for i in held_rows(ROWS, "1-of-3", 0)}
    assert len(away) == 2
    assert not list(sample_problems(SPEC, part("1-of-3", away, 4), compact=True))


@pytest.mark.parametrize(
    ("held", "away", "n", "words"),
    [
        (None, {"out/5"}, 6, "are not the first 6 of in, out in order"),
        (None, {"in/5"}, 5, "5 samples of in"),
        (None, {"in/5"}, 6, "in order"),
        ("1-of-3", {"in/0", "out/0"}, 4, "in order"),
    ],
)
def test_a_sample_is_missing(held: str | None, away: set[str], n: int, words: str) -> None:
    (said,) = sample_problems(SPEC, part(held, away, n), compact=True)
    assert words in said
