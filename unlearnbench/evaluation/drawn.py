"""A run whose tasks are asked a part at a time, in a drawn order. Answers go to the journals of the
whole tasks, so that an ordinary evaluation goes on from them.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearnbench.errors import ResultError, one_line
from unlearnbench.evaluation.run import Run, _answer
from unlearnbench.models.base import Model
from unlearnbench.recovery.order import Order
from unlearnbench.results import Drawn, RunResult, SampleRecord, TaskResult
from unlearnbench.runs.entries import LoadedRun
from unlearnbench.runs.fingerprint import describe_environment
from unlearnbench.runs.folder import encode_records
from unlearnbench.tasks.rows import TaskSamples


class DrawnRun(Run):
    """One condition of an early check."""

    _shares = False  # its answers are its own: it says how many were asked

    def __init__(self, *made_of: Any, orders: Mapping[str, Order]) -> None:
        """As ``Run``; ``orders``: of every task."""
        super().__init__(*made_of)
        self._orders = orders
        self._known: dict[str, dict[str, SampleRecord]] = {}
        self._begun = False

    def open(self, locks: ExitStack) -> None:
        """As ``Run.open``, with what an earlier check asked of a part.

        Raises:
            ResultError: as ``Run.open``; or what stands in the folder is no beginning of the order.
        """
        super().open(locks)
        if self.result is None:
            return
        for name, earlier in self.result.tasks.items():
            if name not in self._orders:
                continue
            records = self._folder.read_records(name, earlier.records_sha256)
            self._known[name] = {record.id: record for record in records}
            if earlier.drawn is None:
                continue
            order, ids = self._orders[name], self._known[name].keys()
            if not any(order.first(n) == ids for n in range(1, len(order))):
                raise ResultError(
                    f"{self._folder.path}: {one_line(name, 80)} is no beginning of its drawn "
                    "order; use another --output, or --fresh"
                )
            result = self._result_of(name, records)  # not taken on trust
            result = result.model_copy(update={"environment": earlier.environment})
            tasks = {**self.result.tasks, name: result}
            self.result = self.result.model_copy(update={"tasks": tasks})

    @property
    def name(self) -> str:
        """The condition's."""
        return self._condition.name

    @property
    def path(self) -> Path:
        """The run folder."""
        return self._folder.path

    @property
    def tasks(self) -> dict[str, TaskSamples]:
        """By name, as the condition puts them."""
        return {task.spec.task: task for task in self._evaluation.tasks}

    def as_asked(self) -> LoadedRun:
        """The run before its first answer, by which it is held against others."""
        settings, batch = self._settings, self._evaluation.batch_size
        made = RunResult(
            checkpoint=self._checkpoint,
            condition=self._condition,
            protocol=settings.protocol,
            settings=settings,
            tasks={},
            environment=describe_environment(settings.device, settings.dtype, batch),
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )
        return LoadedRun(self._folder.path, made)

    def loaded(self) -> LoadedRun:
        """The run as it stands. Raises ResultError where nothing does."""
        if self.result is None:
            raise ResultError(f"{self._folder.path}: nothing was measured there")
        return LoadedRun(self._folder.path, self.result)

    def draw(self, name: str, n: int, load: Callable[[], Model]) -> list[SampleRecord]:
        """The records of a task's first ``n`` draws; ``load`` is called where some are missing.

        Raises:
            UnlearnbenchError: as ``Run.measure``; every answer before is kept.
        """
        known, wanted = self._known.setdefault(name, {}), self._orders[name].first(n)
        if not wanted <= known.keys():
            model = load()
            if not self._begun:
                self._begin()
                self._begun = True
            if n >= len(self._orders[name]):
                self._measure(self.tasks[name], model)
                records = self.loaded().records(name)
            else:
                records = self._measure_part(name, wanted, model)
            known |= {record.id: record for record in records}
        return [record for record in known.values() if record.id in wanted]

    def _measure_part(self, name: str, ids: Collection[str], model: Model) -> list[SampleRecord]:
        part, journal = self._part(name, ids), self._todo[name]
        records = _answer(part, model, self._settings, journal, self._evaluation)
        content = encode_records(records)
        self._folder.write_file(self._folder.samples_file(name), content)
        self._keep(model, {name: self._result_of(name, records)}, {})
        return records

    def _part(self, name: str, ids: Collection[str]) -> TaskSamples:
        task = self.tasks[name]
        return replace(task, samples=tuple(s for s in task.samples if s.id in ids))

    def _result_of(self, name: str, records: Sequence[SampleRecord]) -> TaskResult:
        """Of a part: without PrivLeak's value, whose zero is of all texts."""
        part, seed = self._part(name, {record.id for record in records}), self._settings.seed
        sha256 = hashlib.sha256(encode_records(records)).hexdigest()
        drawn = Drawn(seed=seed, of=len(self._orders[name]))
        return part.result(records, sha256, None, seed).model_copy(update={"drawn": drawn})

    def close(self) -> None:
        """Have every answer on the disk."""
        for journal in self._todo.values():
            journal.close()
