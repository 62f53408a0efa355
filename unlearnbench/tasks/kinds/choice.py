"""Tasks with choices: the model's is the likeliest behind the question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from unlearnbench.errors import DataError, MetricError
from unlearnbench.requests import Answer, Request, Scored
from unlearnbench.results import AnswerRecord, SampleRecord, Settings
from unlearnbench.tasks.kinds.answers import Facts, ScoredTask, ask_answers, held_to, texts_of
from unlearnbench.tasks.spec import Held, Name, Row, Sample
from unlearnbench.tasks.templates import render_field

NAME = "multiple_choice"


class ChoiceFacts(Facts):
    """Lists with an item for each choice, the right one's first."""

    prompt: str
    choices: tuple[str, ...] = Field(min_length=2, strict=False)
    logprobs: tuple[float, ...] = Field(strict=False)
    """Of whole choices, in nats."""
    characters: tuple[Annotated[float, Field(ge=1)], ...] = Field(strict=False)
    """How many a choice has, whose text may be a hash here."""

    @model_validator(mode="after")
    def _fit_together(self) -> ChoiceFacts:
        hidden = all(text.startswith("sha256:") for text in self.choices)
        alike = hidden or self.characters == tuple(map(len, self.choices))
        if not (alike and len(self.logprobs) == len(self.characters) == len(self.choices)):
            raise ValueError("choices: logprobs or characters are not theirs")
        return self

    def figures(self) -> dict[str, float]:
        each = [total / n for total, n in zip(self.logprobs, self.characters, strict=True)]
        likely = [math.exp(total - max(self.logprobs)) for total in self.logprobs]
        return {
            "accuracy": _chosen(self.logprobs),
            "accuracy_normalised": _chosen(each),
            "probability": likely[0] / sum(likely),
        }


def _chosen(values: Sequence[float]) -> float:
    """1 where the first is above all others; of those that share the top, its share: a tie that
    counted as wrong would look like forgetting.
    """
    return (values[0] == max(values)) / values.count(max(values))


class ChoiceTask(ScoredTask):
    """Questions with choices, one of which is right."""

    output_type: Literal["multiple_choice"]
    metric: Literal["accuracy", "accuracy_normalised"]
    """``accuracy``: by the log-probability of the whole choice. ``accuracy_normalised``: by that of
    a character, lm-evaluation-harness's acc_norm."""
    choices: tuple[Name, ...] = Field(min_length=1, strict=False)
    """Fields, each of a text or a list of them."""
    labels: tuple[str, ...] = Field(default=(), strict=False)
    """What stands for the choices behind the question, as A to D; empty: they themselves."""
    target_is: Literal["text", "index"]
    """Whether ``doc_to_target`` gives the right choice itself, or its place from 0."""

    def answers_of(self, row: Row, where: str) -> list[str]:
        """Raises DataError where a row has one choice alone, offers one twice, or its right one is
        none of them.
        """
        texts = texts_of(row, self.choices, where)
        if len(texts) < 2:
            raise DataError(f"{where}: {len(texts)} choice; a choice is among two or more")
        if self.labels and len(self.labels) != len(texts):
            raise DataError(f"{where}: {len(texts)} choices and {len(self.labels)} labels")
        target = render_field(self.doc_to_target, row, where)
        known = texts if self.target_is == "text" else [str(n) for n in range(len(texts))]
        if target not in known:
            raise DataError(f"{where}: the right choice, {target[:60]!r}, is none of its choices")
        right, put = known.index(target), list(self.labels) or texts
        if len(set(put)) < len(put) or texts.count(texts[right]) > 1:
            raise DataError(f"{where}: a choice stands there twice; remove the row")
        return [put[right], *put[:right], *put[right + 1 :]]

    def plain_text(self, row: Row, where: str) -> str:
        question, delimiter = render_field(self.doc_to_text, row, where), self.target_delimiter
        return question + delimiter + self.answers_of(row, where)[0]

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        return [ask_answers(self.request_id(sample), sample, end=False)]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> AnswerRecord:
        sums = [float(a.logprobs.sum()) for a in answers if isinstance(a, Scored)]
        if not all(map(math.isfinite, sums)):
            raise MetricError(f"{self.task}: {sample.id}: a log-probability is not finite")
        lengths = tuple(map(len, sample.answers))
        put = {"choices": sample.answers, "logprobs": sums, "characters": lengths}
        facts = ChoiceFacts.model_validate({"prompt": sample.text, **put})
        scores, kept = facts.figures(), facts.model_dump(mode="json")
        score = scores.pop(self.metric)
        return AnswerRecord(task=self.task, id=sample.id, facts=kept, score=score, scores=scores)

    def figures(self) -> set[str]:
        return {"accuracy", "accuracy_normalised", "probability"} - {self.metric}

    def rescore(self, record: SampleRecord, imported: bool = False) -> Held:
        return held_to(self, record, ChoiceFacts)


TASK = ChoiceTask
