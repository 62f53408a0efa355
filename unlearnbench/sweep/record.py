"""What a sweep has done: ``sweep/plan.json``, and ``sweep/events.jsonl``, which only grows.

A job counts as done while the record has it under the same key and its products are unchanged.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearnbench.errors import ResultError
from unlearnbench.sweep.graph import Plan, SweepJob, order_text
from unlearnbench.sweep.home import Home, Log
from unlearnbench.util.files import content_sha256, parse_json

PLAN = "sweep/plan.json"
STATES = ("done", "running", "again", "failed", "skipped")
"""What an event may say of a job. ``again``: it failed in a way that another try may mend."""


@dataclass
class Standing:
    """What a sweep's record says."""

    total: int = 0
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The last event of each job."""
    samples: int = 0
    """Of finished evaluations since the last start."""
    started: float = 0.0
    """Of the last start, in seconds since 1970."""
    last: float = 0.0
    end: int = 0
    """Bytes of whole lines."""

    def count(self) -> Counter[str]:
        """Jobs by state; what has no event, or is to be tried again, waits."""
        found = Counter(event["is"] for event in self.states.values())
        found["waiting"] = self.total - sum(found[s] for s in STATES if s != "again")
        return found


def state_folder(output: Path) -> Path:
    """Where the record of a sweep is."""
    return output / "sweep"


def job_folder(output: Path, id: str) -> Path:
    """Where a job has its lock, its log, and while it runs who runs it."""
    return state_folder(output) / "jobs" / id


def read_standing(home: Home) -> Standing:
    """The record of a sweep; an empty one where there is none. Half a last line, of a killed
    process, does not count.

    Raises:
        ResultError: it is damaged.
    """
    found, path = Standing(), Path(f"{home.where}/{PLAN}")
    if (told := home.read(PLAN)) is not None:
        plan = parse_json(path, told, ResultError)
        jobs = plan.get("jobs") if isinstance(plan, dict) else None
        if not isinstance(jobs, int):
            raise ResultError(f"{path} is no sweep's plan; remove it")
        found.total = jobs
    content, path = home.events(), path.with_name("events.jsonl")
    found.end = content.rfind(b"\n") + 1
    for number, line in enumerate(content[: found.end].splitlines(), start=1):
        event = parse_json(path, line, ResultError)
        numbers = (event.get("t"), event.get("samples", 0)) if isinstance(event, dict) else (None,)
        if not isinstance(event, dict) or not all(isinstance(n, int | float) for n in numbers):
            raise ResultError(f"{path}:{number}: no event; remove the file to check all jobs again")
        found.last = event["t"]
        if event.get("is") == "start":
            found.started, found.samples = found.last, 0
            found.states = {k: e for k, e in found.states.items() if e["is"] == "done"}
        elif event.get("is") in STATES and isinstance(event.get("job"), str):
            found.states[event["job"]] = event
            found.samples += int(event.get("samples", 0))
        else:
            raise ResultError(f"{path}:{number}: no event; remove the file to check all jobs again")
    return found


class Record:
    """The one writer of a sweep's record; ``opened`` makes it."""

    def __init__(self, home: Home, known: Standing, events: Log) -> None:
        self._home, self._events = home, events
        self._known = {j: e for j, e in known.states.items() if e["is"] == "done"}
        self.products: dict[str, dict[str, str]] = {}
        """By job that is done: its files below the output, and their hashes."""

    def event(self, job: str, state: str, **facts: Any) -> None:
        """Note that a job is in a state. Raises OutputError where the disk does not take it."""
        line = {"t": round(time.time(), 3), "job": job, "is": state, **facts}
        self._events.add(json.dumps(line).encode("ascii") + b"\n")

    def is_done(self, job: SweepJob) -> bool:
        """Whether the job was done as it is asked for now, and what it made is there still."""
        event = self._known.pop(job.id, None)
        if event is None or event.get("key") != self.key(job):
            return False
        made = event.get("made")
        if not isinstance(made, dict) or self._home.versions(made) != made:
            return False
        self.products[job.id] = made
        return True

    def finish(self, job: SweepJob, made: Iterable[str], **facts: Any) -> None:
        """Note a job as done with the files that it made.

        Raises:
            ResultError: one of them is not there.
        """
        self._home.publish(job.id)
        key, hashes = self.key(job), self._home.versions(made)
        missing = [name for name in made if name not in hashes]
        if missing:
            where = f"{self._home.where}/{missing[0]}"
            raise ResultError(f"{where} is not there, though {job.id} ended")
        self.products[job.id] = hashes
        self.event(job.id, "done", key=key, made=hashes, **facts)
        self._home.settle(job.id)

    def key(self, job: SweepJob) -> str:
        """Of all that decides what a job makes: its order, the names, sizes and times of the files
        that it is given, and what the jobs before it made.
        """
        before = [self.products.get(id) for id in (*job.needs, *job.after)]
        stats = [(path, Path(path).stat()) for path in given_files(job.order)]
        files = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
        return content_sha256([order_text(job.order), before, files])


def given_files(order: Mapping[str, Any]) -> list[str]:
    """The local files that an order names or that are in a folder which it names: its checkpoint,
    texts, task files. Not what it makes itself.
    """
    told = [value for key, value in order.items() if key not in ("around", "name", "out")]
    names, found = set[str](), set[str]()
    while told:
        value = told.pop()
        if isinstance(value, Mapping):
            told += value.values()
        elif isinstance(value, list | tuple):
            told += value
        elif isinstance(value, str):
            names.add(value)
    for name in names:
        with suppress(OSError, ValueError):  # a hub id or another word, or no name of a file
            if os.path.isfile(name):  # noqa: PTH113 - ten thousand jobs have many words
                found.add(name)
            else:
                found |= {entry.path for entry in os.scandir(name) if entry.is_file()}
    return sorted(found)


@contextmanager
def opened(plan: Plan, facts: Mapping[str, Any]) -> Iterator[Record]:
    """The record of a sweep, for one process at a time.

    Raises:
        InUseError: another sweep is running there. StoreError: it is a store's, which refuses.
        ResultError: the record is damaged. OutputError: it cannot be written.
    """
    home = plan.home
    with home.lead():
        known = read_standing(home)
        content = json.dumps({"jobs": len(plan.jobs), "cells": plan.cells, **facts})
        home.write(PLAN, content.encode("ascii"))
        events = home.log(known.end)
        try:
            record = Record(home, known, events)
            record.event("", "start")
            yield record
        finally:
            events.close()
