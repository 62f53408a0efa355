"""From a model's answers to records, and from records to a task's result."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from unlearnbench.errors import MetricError, ModelOutputError
from unlearnbench.evaluation.journal import Answer, Answers
from unlearnbench.metrics import generation_metric, likelihood_metric
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import (
    AttackResult,
    GenerationRecord,
    LikelihoodRecord,
    SampleRecord,
    TaskResult,
)
from unlearnbench.tasks.samples import Plan
from unlearnbench.tasks.spec import GenerationTask, LikelihoodTask

if TYPE_CHECKING:
    from unlearnbench.evaluation.reference import Reference
    from unlearnbench.metrics.intervals import Estimate
    from unlearnbench.models import Model

A = TypeVar("A", Generated, Scored)
Q = TypeVar("Q", Generate, Score)
M = TypeVar("M")


def make_records(
    plan: Plan, model: Model, protocol: str, seed: int, ppl_lower: bool, answers: Answers
) -> list[SampleRecord]:
    """Ask the model for the answers that ``answers`` lacks, and return the records in row order.
    Each new answer is kept, and scored while the model goes on; those that are there already are
    scored again.

    Raises:
        ModelOutputError: the model cannot answer, or did not answer each request once.
        MetricError: an answer cannot be scored.
        OutputError: an answer cannot be kept.
    """
    if isinstance(plan.spec, GenerationTask):
        requests = plan.generate_requests(plan.spec, protocol, seed)
        # Here: a tokenizer must not be asked by two threads at once.
        targets = [_target(plan.spec, model, sample.target) for sample in plan.samples]
        for target in targets:  # one that nothing can match is known before the model runs
            generation_metric(plan.spec.metric).score_output("", target)
        score = partial(_generation_record, plan, plan.spec, targets)
        return [*_answered(requests, model.generate, Generated, answers, score, beside=True)]
    return [*_likelihood_records(plan, model, ppl_lower, answers)]


def request_ids(plan: Plan, ppl_lower: bool) -> tuple[tuple[str, ...], type[Answer]]:
    """The ids that ``make_records`` asks for, and what answers them."""
    texts = plan.score_requests()
    if isinstance(plan.spec, GenerationTask):
        return tuple(r.id for r in texts), Generated
    lowered = _lowered(texts) if ppl_lower else []
    return tuple(r.id for r in [*texts, *lowered]), Scored


def _lowered(texts: Sequence[Score]) -> list[Score]:
    return [Score(f"{r.id}:lower", r.text.lower()) for r in texts]


def _answered(
    requests: Sequence[Q],
    ask: Callable[[Sequence[Q], Collection[str]], Iterable[A]],
    kind: type[A],
    answers: Answers,
    use: Callable[[int, A], M],
    beside: bool = False,
) -> list[M]:
    """Have every request answered once; returns what ``use(place, answer)`` makes of each answer,
    in the order of the requests. beside: in a thread of its own, while the model goes on.
    """
    places = {request.id: place for place, request in enumerate(requests)}
    made = {
        name: use(places[name], answer)
        for name, answer in answers.found.items()
        if name in places and isinstance(answer, kind)
    }
    if len(made) < len(places):
        new = _expected(ask(requests, frozenset(made)), frozenset(made), places)
        made |= (_use_beside if beside else _use_first)(new, places, answers, use)
    missing = [name for name in places if name not in made]
    if missing:
        raise ModelOutputError(f"the model gave no answer for {missing[0]}")
    return [made[name] for name in places]


def _expected(given: Iterable[A], known: Collection[str], places: Mapping[str, int]) -> Iterator[A]:
    """The answers ``given``, each asked for and not ``known`` yet.

    Raises:
        ModelOutputError: one is not.
    """
    seen = set(known)
    for answer in given:
        if answer.id in seen or answer.id not in places:
            raise ModelOutputError(f"the model answered {answer.id} unasked or twice")
        seen.add(answer.id)
        yield answer


def _use_first(
    given: Iterable[A],
    places: Mapping[str, int],
    answers: Answers,
    use: Callable[[int, A], M],
) -> dict[str, M]:
    """Keep each answer once it was used: figures of a text, which may be such as give no score."""
    used = {}
    for answer in given:
        used[answer.id] = use(places[answer.id], answer)
        answers.keep(answer)
    return used


def _use_beside(
    given: Iterable[A],
    places: Mapping[str, int],
    answers: Answers,
    use: Callable[[int, A], M],
) -> dict[str, M]:
    """Keep each answer as it comes, and have it used in another thread while the model goes on:
    a generated text has a score, whatever it says. An error of ``use`` ends the work soon after.
    """
    used: dict[str, Future[M]] = {}
    waiting: deque[Future[M]] = deque()
    with ThreadPoolExecutor(1, "scoring") as thread:
        try:
            for answer in given:
                answers.keep(answer)
                used[answer.id] = thread.submit(use, places[answer.id], answer)
                waiting.append(used[answer.id])
                while waiting and waiting[0].done():
                    waiting.popleft().result()
        except BaseException:  # a signal too: nothing is left to be waited for
            thread.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: future.result() for name, future in used.items()}


def _target(spec: GenerationTask, model: Model, text: str) -> str:
    return text if spec.max_target_toks is None else model.truncate(text, spec.max_target_toks)


def _generation_record(
    plan: Plan, spec: GenerationTask, targets: Sequence[str], place: int, answer: Generated
) -> GenerationRecord:
    sample, metric = plan.samples[place], generation_metric(spec.metric)
    target = targets[place]
    scores = metric.score_output(answer.text, target)
    return GenerationRecord(
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
    plan: Plan, model: Model, ppl_lower: bool, answers: Answers
) -> list[LikelihoodRecord]:
    metric = likelihood_metric(plan.spec.metric)

    def record(place: int, answer: Scored, low: Scored | None = None) -> LikelihoodRecord:
        sample = plan.samples[place]
        return LikelihoodRecord(
            task=plan.spec.task,
            id=sample.id,
            split=sample.split,
            n_tokens=len(answer.logprobs),
            scores=metric.score_text(answer, sample.text, low),
        )

    texts = plan.score_requests()
    if not ppl_lower:
        return _answered(texts, model.score, Scored, answers, record)

    def checked(place: int, answer: Scored) -> Scored:
        record(place, answer)  # a text that cannot be scored is found now, not after two passes
        return answer

    scored = _answered(texts, model.score, Scored, answers, checked)
    return _answered(
        _lowered(texts),
        model.score,
        Scored,
        answers,
        lambda place, low: record(place, scored[place], low),
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
        from unlearnbench.metrics.intervals import bootstrap_mean

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
