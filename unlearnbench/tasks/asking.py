"""How a condition puts a task's samples to a model, where that is not as the task does.

Records keep the task's own prompt and id, so that runs under such a condition stay comparable with
those under any other; what was asked in its place stands beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from unlearnbench.requests import Answer, Generate, Request
from unlearnbench.results import AskedAs, SampleRecord, SearchFound, Settings
from unlearnbench.tasks.spec import Sample, TaskSpec

State: TypeAlias = Mapping[str, Any]
"""Of a search under way, as JSON holds it."""


class Asking(ABC):
    """One task under one such condition."""

    found: tuple[SearchFound, ...] = ()
    """What was searched for, once ``search`` is done."""

    target: Callable[[], Any] | None = None
    """Loads the target, where that is searched on and not the model that is asked."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @abstractmethod
    def asked(self, sample: Sample) -> AskedAs:
        """What the model is given in place of the task's prompt, as the sample's record has it."""

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        """As ``TaskSpec.requests``."""
        prompt = self.asked(sample).prompt
        return [
            [
                replace(request, prompt=prompt)
                if prompt is not None and isinstance(request, Generate)
                else request
                for request in each
            ]
            for each in self.spec.requests(sample, settings)
        ]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> SampleRecord:
        """As ``TaskSpec.record``."""
        record = self.spec.record(sample, answers)
        return record.model_copy(update={"asked": self.asked(sample)})

    def search(  # noqa: B027 - most search for nothing
        self, model: Any, state: State | None, keep: Callable[[State], None]
    ) -> None:
        """Find what the samples are asked with, on a loaded model, before the first is asked.
        ``state``: what an interrupted search gave to ``keep`` last.
        """
