"""Decisions in finished runs of a task with two choices, and the groups of its rows from a file."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unlearnbench.errors import DataError, MetricError, OptionError, one_line
from unlearnbench.metrics.fairness import MOST_MODELS, Votes
from unlearnbench.results import AnswerRecord, SampleRecord
from unlearnbench.runs.entries import (
    LoadedRun,
    require_comparable,
    require_same_condition,
    require_whole,
    run_key,
)
from unlearnbench.runs.folder import read_run
from unlearnbench.tasks.kinds.answers import facts_of
from unlearnbench.tasks.kinds.choice import ChoiceFacts
from unlearnbench.tasks.rows import read_rows, rows_sha256


@dataclass(frozen=True)
class TwoGroups:
    """A task, and what its groups and answers are."""

    task: str
    positive: str
    """The choice that is 1."""
    groups: Path
    """The task's rows, each with its group."""
    group_field: str = "group"


def read_votes(folders: Sequence[Path], asked: TwoGroups) -> Votes:
    """Every run's decision about every row; groups in the order of their names.

    Raises:
        OptionError: runs are not comparable, or of one checkpoint, or have no such task.
        DataError, MetricError: groups or records are not two choices of the rows.
        ResultError: a run is of a part of its samples.
    """
    runs = [LoadedRun(folder, read_run(folder)) for folder in folders]
    if not 0 < len(runs) <= MOST_MODELS:
        raise OptionError(f"{len(runs)} runs; give one, or those of up to {MOST_MODELS} models")
    for run in runs:
        require_whole(run)
    for run in runs[1:]:
        require_comparable(run, runs[0], [asked.task])
        require_same_condition(run, runs[0])
    if len({run_key(run) for run in runs}) < len(runs):
        raise OptionError("two of the runs are of one checkpoint: its votes would count twice")
    every = [run.records(asked.task) for run in runs]
    ids = tuple(record.id for record in every[0])
    if any(tuple(record.id for record in records) != ids for records in every):
        raise MetricError(f"{asked.task}: the runs have other rows, or another order")
    found = [[_decided(record, asked) for record in records] for records in every]
    labels = [[label for _, label in one] for one in found]
    if any(other != labels[0] for other in labels):
        raise MetricError(f"{asked.task}: the runs do not agree on what is right")
    data = runs[0].result.tasks[asked.task].data
    names, groups = _groups(ids, {part.sha256 for part in data}, asked)
    votes = np.array([[vote for vote, _ in one] for one in found], dtype=np.int_).T
    return Votes(ids, votes, np.array(groups), np.array(labels[0], dtype=np.int_), names)


def _decided(record: SampleRecord, asked: TwoGroups) -> tuple[int, int]:
    """The model's choice and the right one; a tie is the negative choice."""
    facts = facts_of(record, ChoiceFacts) if isinstance(record, AnswerRecord) else None
    if facts is None or len(facts.choices) != 2:
        raise MetricError(f"{asked.task}: {record.id} is no question with two choices")
    known = [choice.strip() for choice in facts.choices]
    if known.count(asked.positive.strip()) != 1:
        raise MetricError(
            f"{asked.task}: {record.id} has the choices {one_line(known, 100)}, and "
            f"--positive {one_line(asked.positive, 60)} is not one of them"
        )
    at = known.index(asked.positive.strip())
    return int(facts.logprobs[at] > facts.logprobs[1 - at]), int(at == 0)  # the right one is first


def _groups(
    ids: Sequence[str], data: Container[str], asked: TwoGroups
) -> tuple[tuple[str, str], list[int]]:
    """The two groups' names, and of each row which it is of: ids end in the row's number. ``data``:
    hashes of the task's rows, which the file's have to be, with the groups or without.
    """
    rows, found = read_rows(asked.groups), []
    bare = ({k: v for k, v in row.items() if k != asked.group_field} for row in rows)
    for name in ids:
        number = int(name.rpartition("/")[2]) if name.rpartition("/")[2].isdecimal() else len(rows)
        value = rows[number].get(asked.group_field) if number < len(rows) else None
        if not isinstance(value, str | int) or str(value) == "":
            raise DataError(
                f"{asked.groups}: no {one_line(asked.group_field, 40)!r} for {asked.task}'s row "
                f"{one_line(name, 60)}; give the file that its rows are in, with a group in each"
            )
        found.append(str(value))
    if rows_sha256(rows) not in data and rows_sha256(bare) not in data:
        raise DataError(
            f"{asked.groups} has other rows than {asked.task}, or another order; give the file "
            "that its rows are in, with a group in each"
        )
    names = sorted(set(found))
    if len(names) != 2:
        says = one_line(", ".join(names[:5]), 100)
        raise DataError(f"{asked.groups}: {len(names)} groups ({says}); two are compared")
    return (names[0], names[1]), [names.index(value) for value in found]
