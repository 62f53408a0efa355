"""Sampling: N answers are drawn to each question, and the best counts. What one answer does not
say, another may (arXiv 2410.03523, 2511.04934).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from unlearnbench.conditions.asking import continues
from unlearnbench.conditions.base import ConditionSpec, canonical_number
from unlearnbench.errors import PrecisionError
from unlearnbench.requests import Answer, Generate, Request, Sampling
from unlearnbench.results import AskedAs, GenerationRecord, SampleRecord, Settings
from unlearnbench.tasks.asking import Asking
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.tasks.spec import Sample, TaskSpec, records_of

CONDITIONS = ()
FAMILY = ConditionSpec(
    "sample-N", "asked", "the best of N answers drawn", asks=True, needs_control=True
)
MOST = 1000
fits = continues


def parse(name: str) -> ConditionSpec | None:
    """``sample-16``; at another temperature than 1 ``sample-16-t0.7``, with another seed than 0
    ``sample-16-seed1``, with both in that order.
    """
    number = r"(\d{1,9}(?:\.\d{1,9})?)"
    form = rf"sample-(0|[1-9]\d{{0,8}})(?:-t{number})?(?:-seed(\d{{1,9}}))?"
    match = re.fullmatch(form, name, re.ASCII)
    if match is None:
        return None
    count, seed = int(match.group(1)), int(match.group(3) or 0)
    temperature = canonical_number(match.group(2) or "1")
    if not 1 <= count <= MOST:
        raise PrecisionError(f"{name}: draw 1 to {MOST} answers")
    if not 0 < float(temperature) <= 10:
        raise PrecisionError(f"{name}: use a temperature above 0, and 10 at most")
    marks = [f"-t{temperature}"] * (temperature != "1") + [f"-seed{seed}"] * (seed > 0)
    return replace(
        FAMILY,
        name=f"sample-{count}{''.join(marks)}",
        scheme=FAMILY.scheme.replace("N", str(count)) + f" at temperature {temperature}",
        options={"answers": count, "temperature": float(temperature), "top_k": 0, "seed": seed},
    )


def ask(spec: ConditionSpec, task: TaskSamples) -> Asking:
    """Every prompt N times."""
    return _Drawn(spec, task.spec)


class _Drawn(Asking):
    def __init__(self, spec: ConditionSpec, task: TaskSpec) -> None:
        super().__init__(task)
        options = spec.options
        self._count, self._seed = int(options["answers"]), int(options["seed"])
        self._temperature = float(options["temperature"])

    def asked(self, sample: Sample) -> AskedAs:
        return AskedAs()

    def requests(self, sample: Sample, settings: Settings) -> Sequence[Sequence[Request]]:
        """Each question N times; every draw follows from the seed and the request's id."""
        sampling = Sampling(self._temperature, 0, self._seed)
        return [
            [
                replace(request, id=f"{request.id}:{number}", sampling=sampling)
                for request in each
                if isinstance(request, Generate)
                for number in range(self._count)
            ]
            for each in self.spec.requests(sample, settings)
        ]

    def record(self, sample: Sample, answers: Sequence[Answer]) -> SampleRecord:
        """The best answer's record, the first of several, with the scores of all."""
        made = [self.spec.record(sample, [answer]) for answer in answers]
        records = records_of(self.spec, GenerationRecord, made)
        best = max(records, key=lambda record: record.score)
        scores = tuple(record.score for record in records)
        return best.model_copy(update={"asked": AskedAs(scores=scores)})
