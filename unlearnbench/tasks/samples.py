"""A task made ready to run: its rows read, checked, limited and turned into samples, before any
model is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearnbench.errors import DataError, MetricError
from unlearnbench.results import SampleRecord, SplitData, TaskResult
from unlearnbench.tasks.rows import DataOptions, load_splits
from unlearnbench.tasks.spec import Row, Sample, SplitRows, TaskReference, TaskSpec


@dataclass(frozen=True)
class TaskSamples:
    """A task, the rows behind it and its samples in row order."""

    spec: TaskSpec
    splits: Mapping[str, SplitRows]
    samples: tuple[Sample, ...]

    @property
    def data(self) -> tuple[SplitData, ...]:
        """What was read, as results record it."""
        return tuple(
            SplitData.model_validate(
                {
                    "split": found.split,
                    "rows": len(found.rows),
                    "sha256": found.sha256,
                    "source": found.source,
                    "drift": found.drift,
                }
            )
            for found in self.splits.values()
        )

    def ids(self, split: str) -> tuple[str, ...]:
        """The samples of one split, in row order."""
        return tuple(sample.id for sample in self.samples if sample.split == split)

    def result(
        self,
        records: Sequence[SampleRecord],
        records_sha256: str,
        reference: TaskReference | None,
        seed: int,
    ) -> TaskResult:
        """The task's result from its records.

        Raises:
            MetricError: they are not those of the samples, or give no finite value.
        """
        if [record.id for record in records] != [sample.id for sample in self.samples]:
            raise MetricError(f"{self.spec.task}: the records are not those of the task's samples")
        return TaskResult.model_validate(
            {
                "version": self.spec.version,
                "metric": self.spec.metric,
                "want": self.spec.want,
                "data": self.data,
                "task_sha256": self.spec.definition_sha256,
                "records_sha256": records_sha256,
                **self.spec.summarize(records, reference, seed),
            }
        )


def load_samples(
    spec: TaskSpec, options: DataOptions, limit: int | float | None = None
) -> TaskSamples:
    """Load a task's rows and make its samples, of the first ``limit`` rows of each split; a limit
    below 1 is a share of them.

    Raises:
        DataError: the rows are not what the task needs.
        TaskError: a template does not fit the rows.
        MetricError: the metric is unknown, or a target cannot be scored.
    """
    splits = load_splits(spec, options)
    samples = spec.make_samples(splits, limit)
    for sample in samples:
        if not sample.text:
            raise DataError(f"{spec.task}: {sample.id} is empty; remove the row")
        try:
            (sample.text + sample.target).encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(
                f"{spec.task}: {sample.id} holds half of a surrogate pair, which no tokenizer "
                "reads; correct the row"
            ) from None
    return TaskSamples(spec, splits, tuple(samples))


def limited_count(rows: int, limit: int | float | None) -> int:
    """How many of ``rows`` a limit leaves; below 1 it is a share, rounded up as lm-eval does."""
    if limit is None:
        return rows
    return min(rows, math.ceil(rows * limit) if limit < 1 else int(limit))


def limited(rows: Sequence[Row], limit: int | float | None) -> Sequence[Row]:
    """The first rows that a limit leaves."""
    return rows[: limited_count(len(rows), limit)]
