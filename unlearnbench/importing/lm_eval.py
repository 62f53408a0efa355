"""lm-evaluation-harness: ``samples_<task>_<date>.jsonl`` beside ``results_<date>.json``, for tasks
that are called as ours and generate text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

from unlearnbench.errors import ResultError
from unlearnbench.importing.base import ModelResults
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

log = logging.getLogger("unlearnbench")
_SAMPLES = re.compile(r"samples_(?P<task>.+)_(?P<date>\d{4}-\d\d-\d\dT[\d.:-]+)\.jsonl")


def read_results(folder: Path, registry: Registry, prefix: str) -> Iterator[ModelResults]:
    """A model for every folder with samples; of several dates the last. Raises ResultError where a
    file is damaged or has several answers to one question.
    """
    places: dict[Path, dict[str, Path]] = {}
    for path in sorted(folder.rglob("samples_*.jsonl")):  # by date, so the last one stays
        match = _SAMPLES.fullmatch(path.name)
        if match:
            places.setdefault(path.parent, {})[match["task"]] = path
    wanted = {spec.task for spec in registry.resolve([prefix])}
    for place, files in places.items():
        name = str(place.relative_to(folder))
        found = ModelResults(folder.resolve().name if name == "." else name, folder)
        for task, path in sorted(files.items()):
            spec = registry.tasks.get(task)
            if task in wanted and spec is not None and spec.has_prompts:
                _take(spec, found, path)
            else:
                log.info("%s: skipped, no such generation task of ours", path)
        yield found


def _take(spec: TaskSpec, found: ModelResults, path: Path) -> None:
    rows = found.read(path)
    if not all(isinstance(row, dict) and isinstance(row.get("doc_id"), int) for row in rows):
        raise ResultError(f"{path}: a line is no sample")
    if len({row["doc_id"] for row in rows}) != len(rows):
        raise ResultError(f"{path}: a question is answered twice")
    if (other := spec.without_blank()) is not None:
        end = other.doc_to_text.rpartition("}}")[2]
        if all(str(_prompt(row)).endswith(end) for row in rows):
            found.versions[spec.task] = other.version
    for row in sorted(rows, key=lambda row: int(row["doc_id"])):
        answer = row.get("filtered_resps")
        while isinstance(answer, list) and len(answer) == 1:
            answer = answer[0]
        facts = {"prompt": _prompt(row), "output": answer, "target": row.get("target")}
        found.answer(spec, row["doc_id"], {**facts, "rougeL": row.get("rougeL")})


def _prompt(row: dict[str, object]) -> object:
    """The prompt, where this version of the harness writes it; else nothing."""
    arguments = row.get("arguments")
    if isinstance(arguments, dict):
        arguments = arguments.get("gen_args_0")
        return arguments.get("arg_0", "") if isinstance(arguments, dict) else ""
    while isinstance(arguments, list) and arguments:
        arguments = arguments[0]
    return arguments if isinstance(arguments, str) else ""
