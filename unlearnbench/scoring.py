"""From a model's answers to records, and from records to a task's result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from unlearnbench.errors import MetricError, ModelOutputError
from unlearnbench.metrics import generation_metric, likelihood_metric
from unlearnbench.plan import Plan
from unlearnbench.requests import Generated, Score, Scored
from unlearnbench.results import (
    AttackResult,
    GenerationRecord,
    LikelihoodRecord,
    SampleRecord,
    TaskResult,
)
from unlearnbench.tasks import GenerationTask, LikelihoodTask

if TYPE_CHECKING:
    from unlearnbench.metrics.stats import Estimate
    from unlearnbench.models import Model
    from unlearnbench.reference import Reference

__all__ = ["make_records", "summarize_task"]

A = TypeVar("A", Generated, Scored)
Tick = Callable[[int], object]


def make_records(
    plan: Plan, model: Model, protocol: str, seed: int, ppl_lower: bool, tick: Tick
) -> list[SampleRecord]:
    """Ask the model and score its answers, in row order. ``tick(1)`` follows each answer.

    Raises:
        ModelOutputError: the model cannot answer, or did not answer each request once.
    """
    if isinstance(plan.spec, GenerationTask):
        requests = plan.generate_requests(plan.spec, protocol, seed)
        answers = _by_id([r.id for r in requests], model.generate(requests), tick)
        return [*_generation_records(plan, plan.spec, model, answers)]
    return [*_likelihood_records(plan, model, ppl_lower, tick)]


def _by_id(asked: Sequence[str], answers: Iterable[A], tick: Tick) -> list[A]:
    found: dict[str, A] = {}
    for answer in answers:
        if answer.id in found or answer.id not in asked:
            raise ModelOutputError(f"the model answered {answer.id} unasked or twice")
        found[answer.id] = answer
        tick(1)
    missing = [name for name in asked if name not in found]
    if missing:
        raise ModelOutputError(f"the model gave no answer for {missing[0]}")
    return [found[name] for name in asked]


def _generation_records(
    plan: Plan, spec: GenerationTask, model: Model, answers: Sequence[Generated]
) -> Iterable[GenerationRecord]:
    metric = generation_metric(spec.metric)
    for sample, answer in zip(plan.samples, answers, strict=True):
        target = sample.target
        if spec.max_target_toks is not None:
            target = model.truncate(target, spec.max_target_toks)
        scores = metric.score_output(answer.text, target)
        yield GenerationRecord(
            task=spec.task,
            id=sample.id,
            prompt=sample.text,
            output=answer.text,
            target=target,
            n_tokens=answer.n_tokens,
            score=scores.pop(metric.HEADLINE),
            scores=scores,
        )


def _likelihood_records(
    plan: Plan, model: Model, ppl_lower: bool, tick: Tick
) -> Iterable[LikelihoodRecord]:
    metric = likelihood_metric(plan.spec.metric)
    requests = plan.score_requests()
    scored = _by_id([r.id for r in requests], model.score(requests), tick)
    lowered: Sequence[Scored | None] = [None] * len(scored)
    if ppl_lower:
        lower = [Score(f"{r.id}:lower", r.text.lower()) for r in requests]
        lowered = _by_id([r.id for r in lower], model.score(lower), tick)
    for sample, answer, low in zip(plan.samples, scored, lowered, strict=True):
        yield LikelihoodRecord(
            task=plan.spec.task,
            id=sample.id,
            split=sample.split,
            n_tokens=len(answer.logprobs),
            scores=metric.score_text(answer, sample.text, low),
        )


def summarize_task(
    plan: Plan,
    records: Sequence[SampleRecord],
    records_sha256: str,
    reference: Reference | None,
    seed: int,
) -> TaskResult:
    """A task's result from its records.

    Raises:
        MetricError: the records give no finite value.
    """
    if [record.id for record in records] != [sample.id for sample in plan.samples]:
        raise MetricError(f"{plan.spec.task}: the records are not those of the task's samples")
    summary = _Summary(plan, records_sha256, seed)
    if isinstance(plan.spec, GenerationTask):
        return summary.generation(_all_of(GenerationRecord, plan, records))
    return summary.likelihood(plan.spec, _all_of(LikelihoodRecord, plan, records), reference)


R = TypeVar("R", GenerationRecord, LikelihoodRecord)


def _all_of(kind: type[R], plan: Plan, records: Sequence[SampleRecord]) -> list[R]:
    kept = [record for record in records if isinstance(record, kind)]
    if len(kept) != len(records) or any(record.task != plan.spec.task for record in kept):
        raise MetricError(f"{plan.spec.task}: a record is of another kind or task")
    return kept


class _Summary:
    """The parts that every task's result shares, and what each kind adds."""

    def __init__(self, plan: Plan, records_sha256: str, seed: int) -> None:
        self._plan, self._sha256, self._seed = plan, records_sha256, seed

    def _result(self, n: int, **measured: object) -> TaskResult:
        spec = self._plan.spec
        return TaskResult.model_validate(
            {
                "version": spec.version,
                "metric": spec.metric,
                "want": spec.want,
                "n": n,
                "data": self._plan.data,
                "task_sha256": self._plan.task_sha256,
                "records_sha256": self._sha256,
                **measured,
            }
        )

    def generation(self, records: Sequence[GenerationRecord]) -> TaskResult:
        """Mean of the scores x 100."""
        from unlearnbench.metrics.stats import bootstrap_mean

        estimate = bootstrap_mean([r.score for r in records], self._seed).scaled(100)
        names = list(records[0].scores)
        further = {n: 100 * sum(r.scores[n] for r in records) / len(records) for n in names}
        empty = sum(not r.output.strip() for r in records)
        return self._result(len(records), **_fields(estimate), scores=further, empty_outputs=empty)

    def likelihood(
        self, spec: LikelihoodTask, records: Sequence[LikelihoodRecord], reference: Reference | None
    ) -> TaskResult:
        """AUC of every attack, and PrivLeak where there is a reference."""
        members = [r.scores for r in records if r.split == spec.member_split]
        nonmembers = [r.scores for r in records if r.split == spec.nonmember_split]
        summary = likelihood_metric(spec.metric).summarize(
            members,
            nonmembers,
            spec.attack,
            reference.scores if reference else None,
            self._seed,
        )
        attacks = {
            name: AttackResult(auc=e.value, stderr=e.stderr, ci=e.ci)
            for name, e in summary.attacks.items()
        }
        measured: dict[str, object] = _fields(summary.privleak) if summary.privleak else {}
        measured |= {
            "auc": summary.auc.value,
            "auc_stderr": summary.auc.stderr,
            "auc_ci": summary.auc.ci,
            "attack": spec.attack,
            "attacks": attacks,
            "auc_reference": reference.recorded if reference else None,
        }
        return self._result(len(members), **measured)


def _fields(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value, "stderr": estimate.stderr, "ci": estimate.ci}
