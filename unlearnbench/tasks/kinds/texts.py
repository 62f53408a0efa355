"""Tasks that ask how likely a model finds whole texts, as RWKU's membership sets do (Jin et al.
2024, arXiv 2406.10890): its published figures are means of losses, not an AUC.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Literal

from pydantic import Field, model_validator

from unlearnbench.errors import MetricError
from unlearnbench.metrics.truth import probability
from unlearnbench.requests import Answer, Request, Score, Scored
from unlearnbench.results import AnswerRecord, SampleRecord, Settings
from unlearnbench.tasks.kinds.answers import Facts, facts_of, held_to
from unlearnbench.tasks.rows import limited
from unlearnbench.tasks.spec import (
    Held,
    Name,
    Sample,
    SplitRows,
    TaskReference,
    TaskSpec,
    mean_of_scores,
    records_of,
    require_pins,
)

NAME = "text_loglikelihood"
K = 20
"""Percent of a text's tokens that Min-K% reads."""
_MEANS = {"loss": "loss", "loss/zlib": "zlib", f"Min-{K}%": "lowest", f"Min-{K}%++": "normal"}
MISDIRECTED = {want: frozenset(_MEANS) for want in ("low", "high")}
"""They rise where a text is forgotten, and have no scale."""


class TextFacts(Facts):
    """Of the tokens behind a text's first, in nats; lower looks more like training."""

    text: str
    loss: float = Field(ge=0)
    zlib: float = Field(ge=0)
    """The loss over the bytes of the zlib-compressed text."""
    lowest: float = Field(ge=0)
    """Min-K% Prob with its sign turned."""
    normal: float
    """Min-K%++ likewise."""

    def figures(self) -> dict[str, float]:
        return {"probability": probability(self.loss)}


class TextTask(TaskSpec):
    """Texts; a text's score is exp of the mean log-probability of its tokens."""

    output_type: Literal["text_loglikelihood"]
    metric: Literal["probability"]
    want: Literal["low", "high"]
    test_split: Name

    @model_validator(mode="after")
    def _its_split_is_pinned(self) -> TextTask:
        require_pins(self, "test_split")
        return self

    @property
    def asked_splits(self) -> tuple[str, ...]:
        return (self.test_split,)

    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        split = self.test_split
        return [
            Sample(f"{split}/{i}", split, self.plain_text(row, f"{self.task}: {split}/{i}"))
            for i, row in enumerate(limited(splits[split].rows, limit))
        ]

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        return [[Score(self.request_id(sample), sample.text)]]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> AnswerRecord:
        from unlearnbench.metrics.membership import min_k, min_k_plus_plus

        (scored,) = answers
        if not isinstance(scored, Scored) or not len(scored.logprobs):
            raise MetricError(f"{self.task}: {sample.id}: no token was scored")
        loss = -float(scored.logprobs.mean())
        if not math.isfinite(loss):
            raise MetricError(f"{self.task}: {sample.id}: a log-probability is not finite")
        loss = max(0.0, loss)  # a sure token's log-probability may come out as 1e-17
        facts = TextFacts(
            text=sample.text,
            loss=loss,
            zlib=loss / len(zlib.compress(sample.text.encode())),
            lowest=max(0.0, min_k(scored.logprobs, K)),
            normal=min_k_plus_plus(scored, K),
        )
        kept, score = facts.model_dump(mode="json"), facts.figures()["probability"]
        return AnswerRecord(task=self.task, id=sample.id, facts=kept, score=score)

    def summarize(
        self, records: Sequence[SampleRecord], reference: TaskReference | None, seed: int
    ) -> dict[str, object]:
        """The mean probability, and as RWKU's tables have them means of losses, all x 100."""
        own = records_of(self, AnswerRecord, records)
        found = mean_of_scores([r.score for r in own], [{} for _ in own], seed)
        facts = [facts_of(r, TextFacts) for r in own]
        means = {name: 100 * fmean(getattr(f, of) for f in facts) for name, of in _MEANS.items()}
        return {**found, "scores": means}

    def rescore(self, record: SampleRecord, imported: bool = False) -> Held:
        return held_to(self, record, TextFacts)


TASK = TextTask
