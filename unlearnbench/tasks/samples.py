"""A task made ready to run: its rows checked, limited and turned into samples, before any model
is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from unlearnbench.errors import DataError, TaskError
from unlearnbench.metrics import generation_metric, likelihood_metric
from unlearnbench.requests import Generate, Sampling, Score
from unlearnbench.results import SplitData
from unlearnbench.tasks.prompts import fewshot_prefix, render_field
from unlearnbench.tasks.rows import DataOptions, Row, SplitRows, load_splits
from unlearnbench.tasks.spec import GenerationTask, LikelihoodTask, TaskSpec
from unlearnbench.util.files import content_sha256


@dataclass(frozen=True)
class Sample:
    """One row as it is put to a model. ``target`` is empty for a text that is only scored."""

    id: str
    split: str
    text: str
    target: str = ""


@dataclass(frozen=True)
class Plan:
    """A task, the data behind it and its samples in row order."""

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

    @property
    def task_sha256(self) -> str:
        """Of everything in the task's definition that can move its score."""
        facts = self.spec.model_dump(mode="json")
        for key in ("description", "tag", "superseded_by"):
            facts.pop(key)
        return content_sha256(facts)

    def ids(self, split: str) -> tuple[str, ...]:
        """The samples of one split, in row order."""
        return tuple(sample.id for sample in self.samples if sample.split == split)

    def generate_requests(self, spec: GenerationTask, protocol: str, seed: int) -> list[Generate]:
        """The prompts, decoded as the protocol says; ``spec`` is the plan's own."""
        options = spec.decoding(protocol)
        sampling = None
        if options.do_sample:
            sampling = Sampling(options.temperature, options.top_k, seed)
        return [
            Generate(f"{spec.task}:{s.id}", s.text, options.max_gen_toks, options.until, sampling)
            for s in self.samples
        ]

    def score_requests(self) -> list[Score]:
        """The texts to score."""
        return [Score(f"{self.spec.task}:{s.id}", s.text) for s in self.samples]


def make_plan(spec: TaskSpec, options: DataOptions, limit: int | float | None) -> Plan:
    """Load a task's rows and render its samples, the first ``limit`` rows of each split; a limit
    below 1 is a share of them (``limited``).

    Raises:
        DataError: the rows are not what the task needs.
        TaskError: a template does not fit the rows.
        MetricError: the metric is unknown, or a target cannot be scored.
    """
    splits = load_splits(spec, options)
    if isinstance(spec, GenerationTask):
        samples = _generation_samples(spec, splits, limit)
        metric = generation_metric(spec.metric)
        for sample in samples:  # now, not after an hour of generation
            metric.score_output("", sample.target)
    else:
        attacks = likelihood_metric(spec.metric).ATTACKS
        if spec.attack not in attacks:
            raise TaskError(
                f"{spec.task}: unknown attack {spec.attack!r}; known: {', '.join(attacks)}"
            )
        samples = _likelihood_samples(spec, splits, limit)
    for sample in samples:
        _check_text(spec, sample)
    return Plan(spec, splits, tuple(samples))


def limited(rows: Sequence[Row], limit: int | float | None) -> Sequence[Row]:
    """The first ``limit`` rows, or below 1 that share of them, rounded up as lm-eval does."""
    return rows if limit is None else rows[: limited_count(len(rows), limit)]


def limited_count(rows: int, limit: int | float | None) -> int:
    """How many of ``rows`` a limit leaves."""
    if limit is None:
        return rows
    return min(rows, math.ceil(rows * limit) if limit < 1 else int(limit))


def _check_text(spec: TaskSpec, sample: Sample) -> None:
    if not sample.text:
        raise DataError(f"{spec.task}: {sample.id} is empty; remove the row")
    try:
        (sample.text + sample.target).encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(
            f"{spec.task}: {sample.id} holds half of a surrogate pair, which no tokenizer reads; "
            "correct the row"
        ) from None


def _generation_samples(
    spec: GenerationTask, splits: Mapping[str, SplitRows], limit: int | float | None
) -> list[Sample]:
    prefix = fewshot_prefix(spec, splits[spec.fewshot_split] if spec.fewshot_split else None)
    split = spec.test_split
    samples = []
    for i, row in enumerate(limited(splits[split].rows, limit)):
        where = f"{spec.task}: {split}/{i}"
        prompt = prefix + render_field(spec.doc_to_text, row, where)
        target = render_field(spec.doc_to_target, row, where)
        samples.append(Sample(f"{split}/{i}", split, prompt, target))
    return samples


def _likelihood_samples(
    spec: LikelihoodTask, splits: Mapping[str, SplitRows], limit: int | float | None
) -> list[Sample]:
    return [
        Sample(f"{s}/{i}", s, render_field(spec.doc_to_text, row, f"{spec.task}: {s}/{i}"))
        for s in spec.used_splits
        for i, row in enumerate(limited(splits[s].rows, limit))
    ]
