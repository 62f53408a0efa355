"""The requests that everybody who is measured answers: real MUSE-News rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.rivals import Rival
from unlearnbench.requests import Generate, Request, Score
from unlearnbench.results import GenerationRecord, RunResult, Settings
from unlearnbench.runs.folder import RunFolder, run_path
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, TaskSamples, load_samples

__all__ = [
    "TASKS",
    "Answers",
    "Asked",
    "alike",
    "answers_of",
    "ask",
    "data_folder",
    "plan_of",
    "requests_of",
    "scored",
]

TASKS = ("news_verbmem", "news_knowmem_f", "news_knowmem_r", "news_privleak")
Answers = Mapping[str, str] | Mapping[str, float]


def data_folder() -> Path:
    found = os.environ.get("UNLEARNBENCH_DATA")
    if not found:
        sys.exit("set UNLEARNBENCH_DATA to a folder with muse-bench/MUSE-News")
    return Path(found)


def plan_of(task: str, limit: int) -> TaskSamples:
    (spec,) = load_registry().resolve([task])
    return load_samples(spec, DataOptions(data_folder()), limit)


Asked = Sequence[Request]


def requests_of(task: str, limit: int) -> Asked:
    plan = plan_of(task, limit)
    settings = Settings(protocol="muse", dtype="fp32", device="cpu", seed=0, ppl_lower=False)
    return [r for s in plan.samples for each in plan.spec.requests(s, settings) for r in each]


def ask(rival: Rival, asked: Asked) -> Answers:
    texts = scored(asked)
    if texts:
        return rival.score(texts)
    return rival.generate([r for r in asked if isinstance(r, Generate)])


def scored(asked: Sequence[Request]) -> list[Score]:
    """Those of ``asked`` that are texts to score."""
    return [r for r in asked if isinstance(r, Score)]


def answers_of(output: Path, result: RunResult) -> dict[str, Answers]:
    """What a run that stands below ``output`` answered, by task: texts, and sums of
    log-probabilities.

    Raises:
        ValueError: it was asked otherwise than ``requests_of`` asks the others.
    """
    run = RunFolder(run_path(output, result.checkpoint, result.condition.name))
    found: dict[str, Answers] = {}
    for task, own in result.tasks.items():
        records = run.read_records(task, own.records_sha256)
        asked = {r.id: r for r in requests_of(task, len(records)) if isinstance(r, Generate)}
        for record in records:
            given = asked.get(f"{task}:{record.id}")
            if isinstance(record, GenerationRecord) and given and given.prompt != record.prompt:
                raise ValueError(f"{task}: ours and the others have different prompts")
        found[task] = {f"{task}:{record.id}": _answer(record) for record in records}
    return found


def _answer(record: Any) -> Any:
    if isinstance(record, GenerationRecord):
        return record.output
    return -record.scores["PPL"] * record.n_tokens


def alike(ours: Answers, theirs: Answers) -> str:
    """How many of the answers that both gave are the same; sums of log-probabilities: within 1e-4
    of each other.

    Raises:
        ValueError: they answered nothing that both were asked.
    """
    both = [name for name in ours if name in theirs]
    if not both:
        raise ValueError("no request was answered by both")
    same = sum(_same(ours[name], theirs[name]) for name in both)
    return f"{same}/{len(both)}"


def _same(one: str | float, other: str | float) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-4 * max(1.0, abs(other))
    return str(one).strip() == str(other).strip()
