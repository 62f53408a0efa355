"""The order of work: which job is begun when, what is tried again, and what is left undone.

It knows workers only as a ``Pool``, so that it is the same on Ray and in a test.
"""

from __future__ import annotations

import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from unlearnbench.errors import OutputError, ResultError
from unlearnbench.sweep.graph import Plan, SweepJob
from unlearnbench.sweep.record import Record
from unlearnbench.sweep.resources import Demand, fits

PATIENCE = 60.0
"""Seconds that a job waits for a node which could do it, before it is given up."""
_PAUSE = 0.5


@dataclass(frozen=True)
class Outcome:
    """How one try of a job ended."""

    error: str = ""
    """In one line; empty where it is done."""
    again: bool = False
    """Whether another try may end otherwise: its worker or node died, memory or a lock lacked."""
    node: str = ""
    """Where it ran, where that is known; another try avoids it."""
    made: tuple[str, ...] = ()
    samples: int = 0
    seconds: float = 0.0


class Pool(Protocol):
    """Workers."""

    def nodes(self) -> Sequence[Mapping[str, float]]:
        """What the living nodes have: ``CPU``, ``GPU``, ``memory``."""
        ...

    def submit(self, job: SweepJob, attempt: int, avoid: str) -> None:
        """Begin a job; ``avoid`` names a node where it failed."""
        ...

    def wait(self, seconds: float) -> Sequence[tuple[str, Outcome]]:
        """The jobs that have ended, by id; at most so long."""
        ...


@dataclass
class Tally:
    """How a sweep stands."""

    total: int
    done: int = 0
    kept: int = 0
    """Those among ``done`` that an earlier call had done."""
    running: int = 0
    samples: int = 0
    """Of the evaluations that this call finished."""
    busy: float = 0.0
    """Seconds that the finished jobs of this call took, together."""
    undone: dict[str, str] = field(default_factory=dict)
    """Why, by job."""
    started: float = field(default_factory=time.monotonic)

    @property
    def elapsed(self) -> float:
        """Seconds of this call."""
        return time.monotonic() - self.started

    @property
    def left(self) -> float | None:
        """Seconds that are left, if jobs go on to take as long; None before the first."""
        finished = self.done - self.kept
        if not finished:
            return None
        waiting = self.total - self.done - len(self.undone)
        return waiting * self.busy / finished / max(1, self.running)


class _Nodes:
    """The living nodes, asked for once a second."""

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self._pool, self._clock = pool, clock
        self._found: Sequence[Mapping[str, float]] = ()
        self._looked = float("-inf")

    def living(self) -> Sequence[Mapping[str, float]]:
        now = self._clock()
        if now - self._looked >= 1:
            self._found, self._looked = self._pool.nodes(), now
        return self._found


def has_room(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> bool:
    """Whether all of these may run at once, as far as sums can tell."""
    for name, key in (("cpus", "CPU"), ("gpus", "GPU"), ("memory", "memory")):
        used = sum(getattr(demand, name) for demand in demands)
        if used > sum(node.get(key, 0) for node in nodes) + 1e-9:
            return False
    return True


class Engine:
    """Works a plan off."""

    def __init__(
        self,
        plan: Plan,
        pool: Pool,
        record: Record,
        show: Callable[[Tally, str], None] = lambda progress, line: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``show`` is told of every change, with a line where there is something to say."""
        self._plan, self._pool, self._record = plan, pool, record
        self._show, self._clock = show, clock
        self._jobs = {job.id: job for job in plan.jobs}
        self._place = {id: at for at, id in enumerate(self._jobs)}
        self._behind: dict[str, list[str]] = defaultdict(list)
        self._open: dict[str, int] = {}
        for job in plan.jobs:
            before = {*job.needs, *job.after}
            self._open[job.id] = len(before)
            for id in before:
                self._behind[id].append(job.id)
        self._ready: list[int] = []
        self._order = list(self._jobs)
        self._attempts: dict[str, int] = defaultdict(int)
        self._avoid: dict[str, str] = {}
        self._running: dict[str, Demand] = {}
        self._lacking_since: float | None = None
        self._nodes = _Nodes(pool, clock)
        self.progress = Tally(len(plan.jobs))

    def run(self) -> Tally:
        """Do all that can be done; ``undone`` says what could not, and why.

        Raises:
            OutputError: the record cannot be written.
        """
        for id in [id for id in self._order if not self._open[id]]:
            self._enter(id)
        while self._ready or self._running:
            self._begin()
            if not self._ready and not self._running:
                break
            for id, outcome in self._pool.wait(_PAUSE):
                self._end(self._jobs[id], outcome)
            self._tell()
        return self.progress

    def _enter(self, id: str) -> None:
        """A job before which nothing is left: kept, skipped, or ready."""
        pending = [id]
        while pending:
            job = self._jobs[pending.pop()]
            lost = next((need for need in job.needs if need in self.progress.undone), None)
            if lost is not None:
                self._give_up(job, "skipped", f"it needs {lost}", pending)
            elif self._record.is_done(job):
                self.progress.kept += 1
                self.progress.done += 1
                self._settle(job, pending)
            else:
                heapq.heappush(self._ready, self._place[job.id])

    def _settle(self, job: SweepJob, pending: list[str]) -> None:
        for id in self._behind[job.id]:
            self._open[id] -= 1
            if not self._open[id]:
                pending.append(id)

    def _give_up(self, job: SweepJob, state: str, why: str, pending: list[str]) -> None:
        self.progress.undone[job.id] = why
        self._record.event(job.id, state, error=why)
        self._tell(f"{job.id}: {state}: {why}")
        self._settle(job, pending)

    def _begin(self) -> None:
        """Hand out jobs in their order while there is room for the next."""
        while self._ready:
            job = self._jobs[self._order[self._ready[0]]]
            nodes = self._nodes.living()
            if not any(fits(job.demand, node) for node in nodes):
                now = self._clock()
                self._lacking_since = self._lacking_since or now
                if now - self._lacking_since < PATIENCE:
                    return
                heapq.heappop(self._ready)
                why = f"no node that is left has {job.demand}"
                self._lose(job, why)
                continue
            self._lacking_since = None
            if self._running and not has_room((job.demand, *self._running.values()), nodes):
                return
            heapq.heappop(self._ready)
            self._attempts[job.id] += 1
            self._running[job.id] = job.demand
            attempt = self._attempts[job.id]
            self._record.event(job.id, "running", attempt=attempt)
            self._pool.submit(job, attempt, self._avoid.get(job.id, ""))
            self._tell()

    def _end(self, job: SweepJob, outcome: Outcome) -> None:
        del self._running[job.id]
        outcome = self._kept(job, outcome)
        if not outcome.error:
            self.progress.done += 1
            self.progress.samples += outcome.samples
            self.progress.busy += outcome.seconds
            pending: list[str] = []
            self._settle(job, pending)
            for id in pending:
                self._enter(id)
            self._tell(f"{job.id}: done in {outcome.seconds:.1f} s")
        elif outcome.again and self._attempts[job.id] < self._plan.tries:
            self._avoid[job.id] = outcome.node
            self._record.event(job.id, "again", error=outcome.error)
            self._tell(f"{job.id}: tried again: {outcome.error}")
            heapq.heappush(self._ready, self._place[job.id])
        else:
            tries = self._attempts[job.id]
            times = f", {tries} times" if tries > 1 else ""
            self._lose(job, outcome.error + times)

    def _kept(self, job: SweepJob, outcome: Outcome) -> Outcome:
        """The outcome, once what the job made is in the record; an error where it is not there."""
        if outcome.error:
            return outcome
        facts = {"samples": outcome.samples, "seconds": outcome.seconds}
        try:
            self._record.finish(job, outcome.made, **facts)
        except OutputError:
            raise
        except ResultError as error:
            return Outcome(str(error))
        return outcome

    def _lose(self, job: SweepJob, why: str) -> None:
        pending: list[str] = []
        self._give_up(job, "failed", why, pending)
        for id in pending:
            self._enter(id)

    def _tell(self, line: str = "") -> None:
        self.progress.running = len(self._running)
        self._show(self.progress, line)


def undone_lines(undone: Mapping[str, str]) -> list[str]:
    """What could not be done, a line a job."""
    return [f"not done: {id}: {why}" for id, why in undone.items()]
