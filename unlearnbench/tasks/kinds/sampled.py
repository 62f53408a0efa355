"""Tasks that draw several answers to each prompt: what one does not say, another may (Scholten et
al. 2025, arXiv 2410.03523; leak@k, arXiv 2511.04934). The score is the mean over all answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from unlearnbench.errors import MetricError, OptionError
from unlearnbench.requests import Answer, Generate, Generated, Request
from unlearnbench.results import AnswerRecord, SampleRecord, Settings
from unlearnbench.tasks.kinds.answers import Facts, facts_of, held_to
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.spec import (
    Held,
    Sample,
    TaskReference,
    generation_metric,
    mean_of_scores,
    records_of,
)

NAME = "generate_sampled"


class DrawnFacts(Facts):
    """The answers to one prompt and the metric of each, in the order of their draws."""

    prompt: str
    target: str
    outputs: tuple[str, ...] = Field(min_length=2, strict=False)
    drawn: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(min_length=2, strict=False)

    @model_validator(mode="after")
    def _fit_together(self) -> DrawnFacts:
        if len(self.outputs) != len(self.drawn):
            raise ValueError("drawn: a score for each of outputs")
        return self

    def figures(self) -> dict[str, float]:
        return {"mean": fmean(self.drawn), "best": max(self.drawn), "worst": min(self.drawn)}


class SampledTask(GenerationTask):
    """Prompts to continue ``repeats`` times each, at a temperature, seeded by ``--seed``."""

    output_type: Literal["generate_sampled"]  # type: ignore[assignment]
    repeats: int = Field(ge=2, le=1000)
    """Answers to each prompt."""

    record_type = AnswerRecord

    @model_validator(mode="after")
    def _draws(self) -> SampledTask:
        if not all(
            o.do_sample for o in (self.generation_kwargs, *self.protocol_overrides.values())
        ):
            raise ValueError("generation_kwargs.do_sample: it must be true, or all answers are one")
        return self

    def with_decoding(self, given: Mapping[str, object]) -> SampledTask:
        if given.get("do_sample") is False or given.get("temperature") in (0, "0"):
            raise OptionError(
                f"--gen-kwargs: {self.task} draws its answers; greedy ones would be all one, run "
                "it apart"
            )
        made = super().with_decoding({**given, "do_sample": True})
        return self.model_copy(update=dict(made))

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        """Every draw follows from the seed and the request's id."""
        (((request),),) = super().requests(sample, settings)
        assert isinstance(request, Generate)  # noqa: S101 - the kind above asks for nothing else
        return [[replace(request, id=f"{request.id}:{n}") for n in range(self.repeats)]]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> Any:
        where, metric = f"{self.task}: {sample.id}", generation_metric(self.metric)
        outputs = [answer.text for answer in answers if isinstance(answer, Generated)]
        if len(outputs) != self.repeats:
            raise MetricError(f"{where}: {len(outputs)} texts of {self.repeats}")
        drawn = [self._scores(text, sample.target, where)[metric.HEADLINE] for text in outputs]
        put = {"prompt": sample.text, "target": sample.target, "outputs": outputs, "drawn": drawn}
        facts = DrawnFacts.model_validate(put)
        scores, kept = facts.figures(), facts.model_dump(mode="json")
        score = scores.pop("mean")
        return AnswerRecord(task=self.task, id=sample.id, facts=kept, score=score, scores=scores)

    def summarize(
        self, records: Sequence[SampleRecord], reference: TaskReference | None, seed: int
    ) -> dict[str, object]:
        """The mean over prompts of the mean over answers x 100, and leak@k with its bounds."""
        from unlearnbench.metrics import leak

        own = records_of(self, AnswerRecord, records)
        facts = [facts_of(record, DrawnFacts) for record in own]
        empty = sum(not text.strip() for each in facts for text in each.outputs)
        said = leak.summarize_leak([each.drawn for each in facts], len(own))
        mean = mean_of_scores([r.score for r in own], [r.scores for r in own], seed)
        return {**mean, "empty_outputs": empty, "leak": said, "sampled": self.draws}

    def figures(self) -> set[str]:
        return {"best", "worst"}

    def rescore(self, record: SampleRecord, imported: bool = False) -> Held:
        """Each answer's score from its text, where the record has texts and no hashes."""
        (own,) = records_of(self, AnswerRecord, [record])
        facts, metric = facts_of(own, DrawnFacts), generation_metric(self.metric)
        found = dict(held_to(self, own, DrawnFacts))
        found[self.metric] = (own.score, found.pop("mean")[1])
        if len(facts.drawn) != self.repeats:
            raise MetricError(f"{len(facts.drawn)} answers, and the task asks for {self.repeats}")
        if not facts.target.startswith("sha256:"):
            for n, text in enumerate(facts.outputs):
                self.require_bounded(text, facts.target)
                earned = metric.score_output(text, facts.target)[metric.HEADLINE]
                found[f"answer {n}"] = (facts.drawn[n], earned)
        return found

    def harness_config(self) -> None:
        """None: lm-evaluation-harness seeds its draws otherwise."""


TASK = SampledTask
