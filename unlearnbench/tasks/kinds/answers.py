"""Tasks that ask how likely a model finds answers to a question: one answer, or true and false ones
beside it, from one pass over the rows.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from unlearnbench.errors import DataError, MetricError
from unlearnbench.metrics.memorized import Memorized, memorized
from unlearnbench.metrics.truth import probability, probability_normalised, truth_ratio
from unlearnbench.requests import Answer, Request, Score, Scored
from unlearnbench.results import AnswerRecord, SampleRecord, Settings
from unlearnbench.tasks.rows import limited
from unlearnbench.tasks.spec import (
    Held,
    Name,
    QuestionTask,
    Row,
    Sample,
    SplitRows,
    Strict,
    TaskSpec,
    records_of,
)
from unlearnbench.tasks.templates import render_field
from unlearnbench.util.validation import first_fault

NAME = "answer_loglikelihood"
_OF_FALSE = frozenset(
    {
        *("probability_normalised", "truth_ratio", "truth_ratio_arithmetic"),
        *("truth_better", "truth_share"),
    }
)
_OF_TOKENS = frozenset({"extraction_strength", "extraction_floor", "exact_memorization"})
_KEPT = {"probability_normalised", "truth_better", "truth_share"}
MISDIRECTED = {
    "low": _OF_FALSE - {"probability_normalised"} | {"extraction_floor"},
    "high": _OF_FALSE - _KEPT | {"extraction_floor"},
}
"""Figures that do not move as ``want`` says, so that no comparison may take them."""
RETAINED = ("truth_better",)
"""Figures that utility is made of beside a retain task's own: TOFU's model utility."""


class Facts(Strict):
    """What a record keeps of a question: all its figures follow from it."""

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """Every figure, in [0, 1]; MetricError where they are facts of no answer."""


F = TypeVar("F", bound=Facts)


class AnswerFacts(Facts):
    """Losses are means over an answer's tokens of the negative log-probability, in nats."""

    prompt: str
    answer: str
    loss: float = Field(ge=0)
    true_loss: float | None = Field(default=None, ge=0)
    """Of the true answer in other words."""
    false_losses: tuple[float, ...] = Field(default=(), strict=False)
    tokens: int | None = Field(default=None, gt=0)
    """Of the answer, its end token not counted; absent in imported records, as the next two."""
    matched: int | None = Field(default=None, ge=0)
    known_from: int | None = Field(default=None, ge=0)

    def figures(self) -> dict[str, float]:
        found = {"probability": probability(self.loss)}
        if self.tokens is not None and self.matched is not None and self.known_from is not None:
            known = Memorized(self.tokens, self.matched, self.known_from)
            found["extraction_strength"] = known.strength
            found["extraction_floor"] = float(known.on_floor)
            found["exact_memorization"] = known.exact
        if self.false_losses:
            true = self.loss if self.true_loss is None else self.true_loss
            found["probability_normalised"] = probability_normalised(self.loss, self.false_losses)
            ratio = truth_ratio(true, self.false_losses)
            found["truth_ratio"] = ratio.closer_to_one
            found["truth_better"], found["truth_share"] = ratio.true_better, ratio.share
            other = truth_ratio(true, self.false_losses, "arithmetic")
            found["truth_ratio_arithmetic"] = other.closer_to_one
        return found


class ScoredTask(QuestionTask):
    """Questions with answers whose log-probability behind them is asked for."""

    skip_empty: bool = False
    """Leave out rows without any answer, as texts that are empty."""

    @abstractmethod
    def answers_of(self, row: Row, where: str) -> list[str]:
        """A row's answers, the right one first; DataError where one is missing."""

    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        """Questions with their answers; raises as ``answers_of``."""
        samples, split = [], self.test_split
        for i, row in enumerate(limited(splits[split].rows, limit)):
            where = f"{self.task}: {split}/{i}"
            if self.skip_empty and not render_field(self.doc_to_target, row, where):
                continue
            answers = self.answers_of(row, where)
            prompt = render_field(self.doc_to_text, row, where)
            turns = self.chat.turns(row, where) if self.chat else ()
            put = (tuple(answers), self.target_delimiter, turns)
            samples.append(Sample(f"{split}/{i}", split, prompt, answers[0], *put))
        return samples


class AnswersTask(ScoredTask):
    """Questions with one answer, or true and false ones beside it."""

    output_type: Literal["answer_loglikelihood"]
    true_answer: Name | None = None
    """A field: the answer in other words, which truth ratios are made of; None: the answer."""
    false_answers: tuple[Name, ...] = Field(default=(), strict=False)
    """Fields, each of a text or a list of them."""
    score_end: bool = True
    """Whether an answer's end token counts."""

    @model_validator(mode="after")
    def _fits_together(self) -> AnswersTask:
        known = {"probability", *_OF_TOKENS} | (_OF_FALSE if self.false_answers else set())
        if self.metric not in known:
            raise ValueError(f"metric: known here are {', '.join(sorted(known))}")
        if self.true_answer is not None and not self.false_answers:
            raise ValueError("true_answer: it needs false_answers beside it")
        return self

    def answers_of(self, row: Row, where: str) -> list[str]:
        answers = [render_field(self.doc_to_target, row, where)]
        if self.true_answer is not None:
            answers += texts_of(row, [self.true_answer], where)[:1]
        answers += texts_of(row, self.false_answers, where)
        if not answers[0]:
            raise DataError(f"{where}: the answer is empty; remove the row")
        return answers

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        return [ask_answers(self.request_id(sample), sample, self.score_end)]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> AnswerRecord:
        scored = [answer for answer in answers if isinstance(answer, Scored)]
        own, *others = scored
        losses = [-float(each.logprobs.mean()) for each in others]
        if own.matches is None or not all(math.isfinite(each.logprobs.sum()) for each in scored):
            raise MetricError(f"{own.id}: a log-probability is not finite or not of an answer")
        known = memorized(own.matches[: len(own.matches) - self.score_end].tolist())
        facts = AnswerFacts(
            prompt=sample.text,
            answer=sample.target,
            loss=_not_below_0(-float(own.logprobs.mean())),
            true_loss=_not_below_0(losses.pop(0)) if self.true_answer is not None else None,
            false_losses=tuple(map(_not_below_0, losses)),
            tokens=known.tokens,
            matched=known.matched,
            known_from=known.known_from,
        )
        return self.of_facts(sample.id, facts)

    def of_facts(
        self, name: str, facts: AnswerFacts, stated: Mapping[str, float] | None = None
    ) -> AnswerRecord:
        """A record with every figure of its facts, and ``stated`` ones that they do not give.

        Raises MetricError where the task's own figure is not among them.
        """
        scores = {**(stated or {}), **facts.figures()}
        if self.metric not in scores:
            raise MetricError(f"{self.task}: {name} gives no {self.metric}")
        kept, score = facts.model_dump(mode="json", exclude_defaults=True), scores.pop(self.metric)
        return AnswerRecord(task=self.task, id=name, facts=kept, score=score, scores=scores)

    @property
    def optional_figures(self) -> frozenset[str]:
        """What imported records have not, where the other tool does not say it."""
        return _OF_TOKENS - {self.metric}

    def figures(self) -> set[str]:
        known = {"probability", *_OF_TOKENS} | (_OF_FALSE if self.false_answers else set())
        return known - {self.metric} - self.optional_figures

    def rescore(self, record: SampleRecord, imported: bool = False) -> Held:
        found = held_to(self, record, AnswerFacts)
        optional = frozenset() if imported else self.optional_figures
        missing = sorted({self.metric, *self.figures(), *optional} - found.keys())
        if missing:
            raise MetricError(f"{self.task}: the facts of {record.id} give no {missing[0]}")
        return found


TASK = AnswersTask


def held_to(spec: TaskSpec, record: SampleRecord, kind: type[Facts]) -> Held:
    """What a record states, infinity where it states nothing, and what its facts earn."""
    (own,) = records_of(spec, AnswerRecord, [record])
    stated = {**own.scores, spec.metric: own.score}
    earned = facts_of(own, kind).figures()
    return {name: (stated.get(name, math.inf), value) for name, value in earned.items()}


def facts_of(record: AnswerRecord, kind: type[F]) -> F:
    """The facts of a record of ``kind``; MetricError where they are others."""
    try:
        return kind.model_validate(record.facts)
    except ValidationError as error:
        raise MetricError(f"{record.task}: {record.id}: {first_fault(error)}") from None


def texts_of(row: Row, fields: Sequence[str], where: str) -> list[str]:
    """The texts of some of a row's fields, each of which holds one or a list of them. Raises
    DataError where one is missing, empty or no text.
    """
    found: list[str] = []
    for field in fields:
        held = row.get(field)
        given = held if isinstance(held, (list, tuple)) else [held]
        texts = [text for text in given if isinstance(text, str) and text]
        if not texts or len(texts) != len(given):
            raise DataError(
                f"{where}: field {field!r} holds no text or list of texts; correct the row, or "
                "the task's field"
            )
        found += texts
    return found


def ask_answers(name: str, sample: Sample, end: bool) -> list[Request]:
    """A request for each of a sample's answers, in their order."""
    texts = [sample.delimiter + answer for answer in sample.answers]
    return [Score(f"{name}:{i}", text, sample.text, end) for i, text in enumerate(texts)]


def _not_below_0(loss: float) -> float:
    return max(0.0, loss)  # a sure token's log-probability may come out as 1e-17
