"""What is known of answers before they are asked: those of the same prompts elsewhere.

Texts, not token ids: a run that goes on finds in its files what an undisturbed one has in memory,
so both form the same passes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeAlias

from unlearnbench.errors import UnlearnbenchError
from unlearnbench.requests import Answer, Generate, Generated, Request, Sampling
from unlearnbench.results import DraftFigures, GenerationRecord, RunResult, SampleRecord, Settings
from unlearnbench.runs.folder import RunFolder
from unlearnbench.tasks.rows import TaskSamples

log = logging.getLogger("unlearnbench")

_Key: TypeAlias = tuple[str, str, Sampling | None]
_MOST = 4  # of one prompt


class Drafts:
    """Answers by prompt; drawn ones by their request too, from whose id their draws follow."""

    def __init__(self) -> None:
        self._known: dict[_Key, list[str]] = {}
        self._reference: dict[_Key, list[str]] = {}

    def give(self, requests: Sequence[Generate]) -> list[Generate]:
        """The requests with what is known: of the first condition, the latest ones, a reference."""
        found = []
        for request in requests:
            first, *others = self._known.get(_key(request), []) or [""]
            rest = [*reversed(others), *self._reference.get(_key(request), [])]
            texts = dict.fromkeys(text for text in (first, *rest) if text)
            found.append(replace(request, drafts=tuple(texts)[:_MOST]))
        return found

    def take(self, requests: Iterable[Request], found: Mapping[str, Answer]) -> None:
        """Answers of a condition, by request."""
        for request in requests:
            answer = found.get(request.id)
            if isinstance(request, Generate) and isinstance(answer, Generated):
                self._known.setdefault(_key(request), []).append(answer.text)

    def take_records(
        self, task: TaskSamples, records: Sequence[SampleRecord], settings: Settings
    ) -> None:
        """The same from records of a condition that was finished before."""
        self._add(self._known, task, records, settings)

    def take_run(
        self,
        folder: RunFolder,
        result: RunResult,
        tasks: Sequence[TaskSamples],
        settings: Settings,
    ) -> None:
        """The answers of another run. Damaged files give none: nothing rests on them."""
        for task in tasks:
            known = result.tasks.get(task.spec.task)
            if known is None or task.spec.record_type is not GenerationRecord:
                continue
            try:
                records = folder.read_records(task.spec.task, known.records_sha256)
            except UnlearnbenchError as error:
                log.warning("no drafts from %s: %s", folder.path, error)
                continue
            self._add(self._reference, task, records, settings)

    def _add(
        self,
        known: dict[_Key, list[str]],
        task: TaskSamples,
        records: Sequence[SampleRecord],
        settings: Settings,
    ) -> None:
        outputs = {r.id: r.output for r in records if isinstance(r, GenerationRecord)}
        for sample in task.samples:
            asked = [*chain.from_iterable(task.requests(sample, settings))]
            if sample.id in outputs and len(asked) == 1 and isinstance(asked[0], Generate):
                known.setdefault(_key(asked[0]), []).append(outputs[sample.id])


def _key(request: Generate) -> _Key:
    return request.prompt, request.id if request.sampling else "", request.sampling


def draft_figures(answers: Iterable[Answer]) -> DraftFigures | None:
    """Sums over the answers that were verified against drafts; None without any."""
    own = [answer for answer in answers if isinstance(answer, Generated) and answer.passes]
    if not own:
        return None
    return DraftFigures(
        answers=len(own),
        tokens=sum(answer.n_tokens for answer in own),
        drafted=sum(answer.drafted for answer in own),
        accepted=sum(answer.accepted for answer in own),
        passes=sum(answer.passes for answer in own),
    )
