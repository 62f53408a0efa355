"""Samples are put to a model, and its answers become records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from unlearnbench.errors import ModelOutputError
from unlearnbench.evaluation.journal import Answers
from unlearnbench.models.base import Model
from unlearnbench.requests import Answer, Generate, Generated, Request, Score, Scored
from unlearnbench.results import SampleRecord, Settings
from unlearnbench.runs.fingerprint import Fingerprint
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample, TaskSpec

Rounds = Sequence[Sequence[Request]]


def request_ids(
    task: TaskSamples, settings: Settings
) -> tuple[tuple[str, ...], type[Generated] | type[Scored]]:
    """The ids of everything that a task asks, and what answers them."""
    asked = [
        request
        for sample in task.samples
        for each in task.spec.requests(sample, settings)
        for request in each
    ]
    kind = Generated if isinstance(asked[0], Generate) else Scored
    return tuple(request.id for request in asked), kind


def make_records(
    task: TaskSamples, model: Model, settings: Settings, answers: Answers
) -> list[SampleRecord]:
    """Ask the model for the answers that ``answers`` lacks, and return the records in row order.
    Each new answer is kept; those that are there already are scored again.

    Raises:
        ModelOutputError: the model cannot answer, or did not answer each request once.
        MetricError: an answer cannot be scored.
        OutputError: an answer cannot be kept.
    """
    samples = task.spec.fit(task.samples, model.truncate)
    asked = [task.spec.requests(sample, settings) for sample in samples]
    scoring = _Scoring(task.spec, samples, asked)
    for rounds in zip(*asked, strict=True):
        requests = [request for each in rounds for request in each]
        texts = [request for request in requests if isinstance(request, Score)]
        prompts = [request for request in requests if isinstance(request, Generate)]
        _ask(prompts, partial(model.generate, prompts), answers, scoring)
        _ask(texts, partial(model.score, texts), answers, scoring)
    return [scoring.records[place] for place in range(len(samples))]


class _Scoring:
    """Makes a sample's record as soon as a round of its requests is answered."""

    def __init__(self, spec: TaskSpec, samples: Sequence[Sample], asked: Sequence[Rounds]) -> None:
        self.records: dict[int, SampleRecord] = {}
        self._spec, self._samples, self._asked = spec, samples, asked
        self._got: dict[str, Answer] = {}
        self._places = {
            r.id: at for at, rounds in enumerate(asked) for each in rounds for r in each
        }

    def take(self, answer: Answer) -> None:
        """Score an answer. Raises: MetricError where it has no score."""
        self._got[answer.id] = answer
        place = self._places[answer.id]
        known: list[Answer] = []
        for each in self._asked[place]:
            if not all(request.id in self._got for request in each):
                break
            known += [self._got[request.id] for request in each]
        if known:
            self.records[place] = self._spec.record(self._samples[place], known)


def _ask(
    requests: Sequence[Request],
    ask: Callable[[Collection[str]], Iterable[Answer]],
    answers: Answers,
    scoring: _Scoring,
) -> None:
    """Have every request answered once, and every answer kept and scored.

    A generated text has a score, whatever it says: it is kept as it comes and scored in a thread,
    while the model goes on; an error there ends the work soon after. Figures of a text may be such
    as give no score, so they are scored first.
    """
    left = {request.id for request in requests}
    known = [answers.found[name] for name in answers.found if name in left]
    for answer in known:
        scoring.take(answer)
    left -= {answer.id for answer in known}
    if not left:
        return
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1, "scoring") as thread:
        try:
            for answer in ask(frozenset(answer.id for answer in known)):
                if answer.id not in left:
                    raise ModelOutputError(f"the model answered {answer.id} unasked or twice")
                left.remove(answer.id)
                if isinstance(answer, Generated):
                    answers.keep(answer)
                    waiting.append(thread.submit(scoring.take, answer))
                else:
                    scoring.take(answer)
                    answers.keep(answer)
                while waiting and waiting[0].done():
                    waiting.popleft().result()
        except BaseException:  # a signal too: nothing is left to be waited for
            thread.shutdown(wait=False, cancel_futures=True)
            raise
        for future in waiting:
            future.result()
    if left:
        first = next(request.id for request in requests if request.id in left)
        raise ModelOutputError(f"the model gave no answer for {first}")


def task_fingerprint(task: TaskSamples) -> Fingerprint:
    """Of a task that is to be measured."""
    return Fingerprint.of_task(task.spec.version, task.spec.definition_sha256, task.data)
