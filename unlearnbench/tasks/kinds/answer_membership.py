"""PrivLeak of answers: two groups of questions, told apart by how likely a model finds their
answers (TOFU's holdout, added to arXiv 2401.06121's data in 2025; open-unlearning's figures).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from unlearnbench.errors import DataError, MetricError
from unlearnbench.requests import Answer, Request, Score, Scored
from unlearnbench.results import LikelihoodRecord, Settings
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask, require_attack, takes_gradient
from unlearnbench.tasks.rows import limited
from unlearnbench.tasks.spec import Name, Row, Sample, SplitRows, likelihood_metric
from unlearnbench.tasks.templates import render_field

Place = Annotated[tuple[Name, Name], Field(strict=False)]
NAME = "answer_membership"


class AnswerMembershipTask(LikelihoodTask):
    """Questions with answers; a membership attack reads the answers' tokens.

    The end token counts in the loss (PPL, PPL/zlib, gradnorm), and not in Min-K%, as in
    open-unlearning. ``zlib`` is of the answer alone.
    """

    output_type: Literal["answer_membership"]  # type: ignore[assignment]
    places: dict[Name, Place] = Field(default_factory=dict)
    """Of each split the subset that it is of, and what it is called there; else ``dataset_name``
    and its own name."""
    doc_to_target: str
    target_delimiter: str = " "

    has_prompts: ClassVar[bool] = True

    @model_validator(mode="after")
    def _places_are_of_splits(self) -> AnswerMembershipTask:
        if odd := sorted(self.places.keys() - self.splits.keys()):
            raise ValueError(f"places: splits has no entry for {odd[0]}")
        return self

    def plain_text(self, row: Row, where: str) -> str:
        question = render_field(self.doc_to_text, row, where)
        return question + self.target_delimiter + render_field(self.doc_to_target, row, where)

    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        super().make_samples(splits, 0)  # the attack is known
        samples = []
        for split in self.asked_splits:
            for i, row in enumerate(limited(splits[split].rows, limit)):
                where = f"{self.task}: {split}/{i}"
                prompt = render_field(self.doc_to_text, row, where)
                answer = render_field(self.doc_to_target, row, where)
                if not answer:
                    raise DataError(f"{where}: the answer is empty; remove the row")
                turns = self.chat.turns(row, where) if self.chat else ()
                put = (answer, (answer,), self.target_delimiter, turns)
                samples.append(Sample(f"{split}/{i}", split, prompt, *put))
        return samples

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        text = sample.delimiter + sample.target
        gradient = takes_gradient(self, settings)
        return [[Score(self.request_id(sample), text, sample.text, end=True, gradient=gradient)]]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> LikelihoodRecord:
        (text,) = answers
        if not isinstance(text, Scored):
            raise MetricError(f"{text.id}: the answer is no log-probability")
        score = likelihood_metric(self.metric).score_text
        own = replace(text, logprobs=text.logprobs[:-1], mean=text.mean[:-1], std=text.std[:-1])
        whole, inner = score(text, sample.target, None), score(own, sample.target, None)
        scores = {name: whole[name] if name.startswith("PPL") else inner[name] for name in inner}
        what = f"an answer of {len(own.logprobs)} tokens is too short"
        require_attack(self, sample, scores, what)
        return LikelihoodRecord(
            task=self.task,
            id=sample.id,
            split=sample.split,
            n_tokens=len(text.logprobs),
            scores=scores,
        )


TASK = AnswerMembershipTask
