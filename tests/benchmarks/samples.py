"""The requests that everybody who is measured answers: real MUSE-News rows."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.benchmarks.rivals import Rival
from unlearnbench.data import DataOptions
from unlearnbench.plan import Plan, make_plan
from unlearnbench.requests import Generate, Score
from unlearnbench.tasks import GenerationTask, load_registry

__all__ = ["TASKS", "Answers", "Asked", "ask", "data_folder", "plan_of", "requests_of", "scored"]

TASKS = ("news_verbmem", "news_knowmem_f", "news_knowmem_r", "news_privleak")
Answers = Mapping[str, str] | Mapping[str, float]


def data_folder() -> Path:
    found = os.environ.get("UNLEARNBENCH_DATA")
    if not found:
        sys.exit("set UNLEARNBENCH_DATA to a folder with muse-bench/MUSE-News")
    return Path(found)


def plan_of(task: str, limit: int) -> Plan:
    (spec,) = load_registry().resolve([task])
    return make_plan(spec, DataOptions(data_folder()), limit)


Asked = list[Generate] | list[Score]


def requests_of(task: str, limit: int) -> Asked:
    plan = plan_of(task, limit)
    if isinstance(plan.spec, GenerationTask):
        return plan.generate_requests(plan.spec, "muse", 0)
    return plan.score_requests()


def ask(rival: Rival, asked: Asked) -> Answers:
    texts = scored(asked)
    if texts:
        return rival.score(texts)
    return rival.generate([r for r in asked if isinstance(r, Generate)])


def scored(asked: Sequence[Generate | Score]) -> list[Score]:
    """Those of ``asked`` that are texts to score."""
    return [r for r in asked if isinstance(r, Score)]
