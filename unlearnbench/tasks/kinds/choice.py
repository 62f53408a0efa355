"""Tasks with choices: the model's is the likeliest behind the question."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from unlearnbench.errors import DataError, MetricError
from unlearnbench.requests import Answer, Request, Scored
from unlearnbench.results import AnswerRecord, Fact, Settings
from unlearnbench.tasks.kinds.answers import ask_answers, texts_of
from unlearnbench.tasks.rows import limited
from unlearnbench.tasks.spec import Name, Row, Sample, SplitRows, TaskSpec, require_pins
from unlearnbench.tasks.templates import render_field

NAME = "multiple_choice"


class ChoiceTask(TaskSpec):
    """Questions with choices, one of which is right."""

    output_type: Literal["multiple_choice"]
    want: Literal["low", "high"]
    metric: Literal["accuracy", "accuracy_normalised"]
    """``accuracy``: by the log-probability of the whole choice. ``accuracy_normalised``: by that of
    a character, lm-evaluation-harness's acc_norm."""
    test_split: Name
    choices: tuple[Name, ...] = Field(min_length=1, strict=False)
    """Fields, each of a text or a list of them."""
    labels: tuple[str, ...] = Field(default=(), strict=False)
    """What stands for the choices behind the question, as A to D; empty: they themselves."""
    doc_to_target: str
    target_is: Literal["text", "index"]
    """Whether ``doc_to_target`` gives the right choice itself, or its place from 0."""
    target_delimiter: str = " "

    has_prompts: ClassVar[bool] = True

    @model_validator(mode="after")
    def _splits_are_pinned(self) -> ChoiceTask:
        require_pins(self, "test_split")
        return self

    @property
    def asked_splits(self) -> tuple[str, ...]:
        return (self.test_split,)

    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        """Questions, each with what may follow it, the right one first.

        Raises DataError where a row has one choice alone, or its right one is none of them.
        """
        samples, split = [], self.test_split
        for i, row in enumerate(limited(splits[split].rows, limit)):
            where = f"{self.task}: {split}/{i}"
            choices, right = self._choices(row, where)
            put = choices[right], *choices[:right], *choices[right + 1 :]
            prompt = render_field(self.doc_to_text, row, where)
            turns = self.chat.turns(row, where) if self.chat else ()
            samples.append(
                Sample(f"{split}/{i}", split, prompt, put[0], put, self.target_delimiter, turns)
            )
        return samples

    def _choices(self, row: Row, where: str) -> tuple[list[str], int]:
        texts = texts_of(row, self.choices, where)
        if len(texts) < 2:
            raise DataError(f"{where}: {len(texts)} choice; a choice is among two or more")
        if self.labels and len(self.labels) != len(texts):
            raise DataError(f"{where}: {len(texts)} choices and {len(self.labels)} labels")
        target = render_field(self.doc_to_target, row, where)
        known = texts if self.target_is == "text" else [str(n) for n in range(len(texts))]
        if target not in known:
            raise DataError(f"{where}: the right choice, {target[:60]!r}, is none of its choices")
        return list(self.labels) or texts, known.index(target)

    def plain_text(self, row: Row, where: str) -> str:
        choices, right = self._choices(row, where)
        return render_field(self.doc_to_text, row, where) + self.target_delimiter + choices[right]

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        return [ask_answers(self.request_id(sample), sample, end=False)]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> AnswerRecord:
        """The right choice, the first here, must be likelier than all others: a model to which
        two are the same has chosen none.
        """
        sums = [float(a.logprobs.sum()) for a in answers if isinstance(a, Scored)]
        if not all(map(math.isfinite, sums)):
            raise MetricError(f"{self.task}: {sample.id}: a log-probability is not finite")
        each = [total / len(text) for total, text in zip(sums, sample.answers, strict=True)]
        likely = [math.exp(total - max(sums)) for total in sums]
        scores = {
            "accuracy": float(sums[0] > max(sums[1:])),
            "accuracy_normalised": float(each[0] > max(each[1:])),
            "probability": likely[0] / sum(likely),
        }
        facts: dict[str, Fact] = {"prompt": sample.text, "logprobs": sums}
        facts["choices"] = list(sample.answers)
        score = scores.pop(self.metric)
        return AnswerRecord(task=self.task, id=sample.id, facts=facts, score=score, scores=scores)

    def figures(self) -> set[str]:
        return {"accuracy", "accuracy_normalised", "probability"} - {self.metric}


TASK = ChoiceTask
