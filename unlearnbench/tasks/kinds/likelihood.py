"""Tasks that score texts token by token, and tell two groups of them apart: PrivLeak.

Where PrivLeak has its zero is never assumed: without the retrained model's scores, or an AUC that
the task states for this base model, there is an AUC and no PrivLeak.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, Field, model_validator

from unlearnbench.errors import MetricError, OptionError, TaskError, one_line
from unlearnbench.requests import GRADNORM, Answer, Request, Score, Scored
from unlearnbench.results import (
    AttackResult,
    AucReference,
    LikelihoodRecord,
    SampleRecord,
    Settings,
)
from unlearnbench.tasks.rows import limited
from unlearnbench.tasks.spec import (
    Name,
    Sample,
    SplitRows,
    Strict,
    TaskReference,
    TaskSpec,
    likelihood_metric,
    records_of,
    require_pins,
)

if TYPE_CHECKING:
    from unlearnbench.metrics.intervals import Estimate
    from unlearnbench.metrics.membership import ReferenceScores

log = logging.getLogger("unlearnbench")
NAME = "token_loglikelihood"


class StatedReference(Strict):
    """A published AUC of the retrained model, valid for one base model only."""

    auc: float = Field(gt=0, le=1)
    base_model: str
    config: dict[str, str | int] = Field(min_length=1)
    """The fields of that base model's ``config.json`` by which it is recognised."""
    source: str

    def differences(self, config: Mapping[str, object]) -> list[str]:
        """The fields by which a checkpoint is of another base model. Rows behind the vocabulary's
        are none: a few added tokens, or padding to a multiple of 64.
        """
        odd = []
        for key, value in self.config.items():
            there = config.get(key, "absent")
            if there != value and not (key == "vocab_size" and _is_padded(there, value)):
                odd.append(f"{key} {there} instead of {value}")
        return odd

    def reference(self) -> TaskReference:
        """As PrivLeak's zero; the file gives its AUC alone."""
        from unlearnbench.metrics.membership import ReferenceScores

        where = f"{self.base_model}: {self.source}"
        told = AucReference(auc=self.auc, kind="stated", source=where)
        return TaskReference(ReferenceScores(self.auc), told)


def _is_padded(rows: object, stated: object) -> bool:
    if type(rows) is not int or type(stated) is not int:
        return False
    more = rows - stated
    return 0 < more <= 8 or (0 < more <= 128 and rows % 64 == 0)


class LikelihoodTask(TaskSpec):
    """Texts to score token by token; two groups of texts are told apart by a membership attack."""

    output_type: Literal["token_loglikelihood"]
    want: Literal["zero"]
    member_split: Name
    nonmember_split: Name
    attack: str
    """The one behind the result's AUC and PrivLeak."""
    references: tuple[StatedReference, ...] = Field(default=(), strict=False)

    record_type: ClassVar[type[BaseModel]] = LikelihoodRecord
    needs_reference: ClassVar[bool] = True

    @model_validator(mode="after")
    def _splits_are_pinned(self) -> LikelihoodTask:
        require_pins(self, "member_split", "nonmember_split")
        if self.member_split == self.nonmember_split:
            raise ValueError("nonmember_split: it and member_split must differ")
        return self

    @property
    def asked_splits(self) -> tuple[str, ...]:
        return (self.member_split, self.nonmember_split)

    @property
    def headline(self) -> str:
        return self.attack

    def make_samples(
        self, splits: Mapping[str, SplitRows], limit: int | float | None
    ) -> list[Sample]:
        attacks = likelihood_metric(self.metric).ATTACKS
        if self.attack not in (*attacks, GRADNORM):
            known = ", ".join((*attacks, GRADNORM))
            raise TaskError(f"{self.task}: unknown attack {self.attack!r}; known: {known}")
        return [
            Sample(f"{s}/{i}", s, self.plain_text(row, f"{self.task}: {s}/{i}"))
            for s in self.asked_splits
            for i, row in enumerate(limited(splits[s].rows, limit))
        ]

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        """The text; with ``--ppl-lower`` its lower-cased form in a second round."""
        name = self.request_id(sample)
        rounds = [[Score(name, sample.text, gradient=takes_gradient(self, settings))]]
        if settings.ppl_lower:
            rounds.append([Score(f"{name}:lower", sample.text.lower())])
        return rounds

    def record(self, sample: Sample, answers: Sequence[Answer]) -> LikelihoodRecord:
        text, *lowered = [answer for answer in answers if isinstance(answer, Scored)]
        scores = likelihood_metric(self.metric).score_text(text, sample.text, *lowered)
        n_tokens = len(text.logprobs)
        what = f"a text of {n_tokens} scored tokens is too short"
        require_attack(self, sample, scores, what)
        return LikelihoodRecord(
            task=self.task, id=sample.id, split=sample.split, n_tokens=n_tokens, scores=scores
        )

    def of_one_run(self, records: Sequence[SampleRecord]) -> list[SampleRecord]:
        """An AUC is over all texts: an attack that one of them is too short for is left out."""
        return _with_common_scores(records_of(self, LikelihoodRecord, records))

    def summarize(
        self, records: Sequence[SampleRecord], reference: TaskReference | None, seed: int
    ) -> dict[str, object]:
        """AUC of every attack, and PrivLeak where there is a reference."""
        own = records_of(self, LikelihoodRecord, records)
        members = [r.scores for r in own if r.split == self.member_split]
        nonmembers = [r.scores for r in own if r.split == self.nonmember_split]
        zero = reference.scores if reference else None
        metric = likelihood_metric(self.metric)
        found = metric.summarize(members, nonmembers, self.attack, zero, seed)
        fields: dict[str, object] = {
            "n": len(members),
            "auc": found.auc.value,
            "auc_stderr": found.auc.stderr,
            "auc_ci": found.auc.ci,
            "intervals": "bounded",
            "attack": self.attack,
            "attacks": {
                name: AttackResult(auc=e.value, stderr=e.stderr, ci=e.ci)
                for name, e in found.attacks.items()
            },
        }
        if reference is not None and found.privleak is not None:
            leak = found.privleak
            fields |= {"value": leak.value, "stderr": leak.stderr, "ci": leak.ci}
            fields["auc_reference"] = reference.recorded
        return fields

    @property
    def optional_figures(self) -> frozenset[str]:
        """What options add, and attacks that need longer texts than the task's own."""
        needs = likelihood_metric(self.metric).ATTACKS
        longer = {name for name in needs if needs[name] > needs.get(self.attack, 0)}
        return frozenset({"PPL/lower", GRADNORM, *longer} - {self.attack})

    def figures(self) -> set[str]:
        return {*likelihood_metric(self.metric).ATTACKS, GRADNORM} - self.optional_figures

    def stated_reference(self, config: Mapping[str, object]) -> TaskReference:
        if not self.references:
            raise OptionError(
                f"{self.task} states no reference; pass --reference RUN_DIR, a run of the "
                "retrained model, or leave --reference out to get the AUC alone"
            )
        for stated in self.references:
            if not stated.differences(config):
                return stated.reference()
        first = self.references[0]
        raise OptionError(
            f"{self.task}: the stated reference is for {first.base_model}, and this checkpoint is "
            f"another model ({one_line(', '.join(first.differences(config)), 300)}); pass "
            "--reference RUN_DIR, a run of its own retrained model"
        )

    def stated_aucs(self) -> tuple[float, ...]:
        return tuple(stated.auc for stated in self.references)

    def reference_scores(self, records: Sequence[SampleRecord]) -> ReferenceScores:
        from unlearnbench.metrics.membership import ReferenceScores, auc

        members, nonmembers = (self._scores(records, split) for split in self.asked_splits)
        return ReferenceScores(auc(members, nonmembers), members, nonmembers)

    def against(
        self, records: Sequence[SampleRecord], reference: ReferenceScores, seed: int
    ) -> Estimate:
        """PrivLeak of the headline attack."""
        members, nonmembers = (
            [{self.attack: score} for score in self._scores(records, split)]
            for split in self.asked_splits
        )
        metric = likelihood_metric(self.metric)
        leak = metric.summarize(members, nonmembers, self.attack, reference, seed).privleak
        if leak is None:
            raise MetricError("the metric gives no PrivLeak")
        return leak

    def _scores(self, records: Sequence[SampleRecord], split: str) -> tuple[float, ...]:
        own = [r for r in records_of(self, LikelihoodRecord, records) if r.split == split]
        for record in own:
            if self.attack not in record.scores:
                raise MetricError(f"record {record.id} has no {self.attack}")
        return tuple(record.scores[self.attack] for record in own)


def takes_gradient(spec: LikelihoodTask, settings: Settings) -> bool:
    """Whether a text's gradient is asked for."""
    return settings.gradnorm is True or spec.attack == GRADNORM


def require_attack(
    spec: LikelihoodTask, sample: Sample, scores: Mapping[str, float], what: str
) -> None:
    """MetricError where a text has no score of the task's attack. what: of how many tokens."""
    if spec.attack in scores:
        return
    where = f"{spec.task}: {sample.id}"
    if spec.attack == GRADNORM:
        raise MetricError(
            f"{where}: the task's attack is {GRADNORM}, and the weights of this condition have no "
            "gradient; run it at another, or with --quant-kernel dequantized"
        )
    raise MetricError(f"{where}: {what} for {spec.attack}, the task's attack; remove the text")


def _with_common_scores(records: Sequence[LikelihoodRecord]) -> list[SampleRecord]:
    """The records of one task with those attacks that all texts have; says which are left out."""
    common = set.intersection(*(set(r.scores) for r in records))
    if lost := sorted({name for r in records for name in r.scores} - common):
        short = [r.id for r in records if not r.scores.keys() >= {*lost}]
        log.warning(
            "%s: %d of %d texts are too short for some attacks (%s), so this run is without %s",
            records[0].task,
            len(short),
            len(records),
            ", ".join(short[:5] + ["..."] * (len(short) > 5)),
            one_line(", ".join(lost), 300),
        )
    kept = [{name: r.scores[name] for name in r.scores if name in common} for r in records]
    return [
        r.model_copy(update={"scores": scores}) for r, scores in zip(records, kept, strict=True)
    ]


TASK = LikelihoodTask
