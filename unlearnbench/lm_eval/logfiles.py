"""``--log-samples``: a run's records and results once more, in the files that lm-eval writes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unlearnbench.lm_eval.suite import samples_path
from unlearnbench.results import (
    GenerationRecord,
    HarnessResult,
    RunResult,
    SampleRecord,
    TaskResult,
)
from unlearnbench.runs.folder import RunFolder


def write_log(folder: RunFolder, result: RunResult) -> list[Path]:
    """Write ``samples_<task>_<date>.jsonl`` for every task and ``results_<date>.json`` beside
    ``run.json``; returns their paths. The date is now, so each call writes new files.

    Raises:
        ResultError: records are missing or changed, or a file cannot be written.
    """
    date = time.strftime("%Y-%m-%dT%H-%M-%S") + f".{time.time_ns() // 1000 % 10**6:06d}"
    files: dict[str, bytes] = {}
    for name, task in result.tasks.items():
        records = folder.read_records(name, task.records_sha256)
        lines = [json.dumps(line, allow_nan=False) + "\n" for line in _lines(task, records)]
        files[f"samples_{name}_{date}.jsonl"] = "".join(lines).encode("ascii")
    for name, found in (result.harness or {}).items():
        if found.kind == "task":
            safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
            files[f"samples_{safe}_{date}.jsonl"] = samples_path(folder.path, name).read_bytes()
    text = json.dumps(_results(result), indent=2, allow_nan=False) + "\n"
    files[f"results_{date}.json"] = text.encode("ascii")
    for file_name, content in files.items():
        folder.write_file(folder.path / file_name, content)
    return [folder.path / file_name for file_name in files]


def _lines(task: TaskResult, records: list[SampleRecord]) -> Iterator[dict[str, Any]]:
    for number, record in enumerate(records):
        line: dict[str, Any] = {"doc_id": number, "doc": {"id": record.id}, "filter": "none"}
        if isinstance(record, GenerationRecord):
            scores = {task.metric: record.score, **record.scores}
            line |= {
                "target": record.target,
                "arguments": {"gen_args_0": {"arg_0": record.prompt}},
                "resps": [[record.output]],
                "filtered_resps": [record.output],
            }
        else:
            scores = dict(record.scores)
            line |= {"doc": {"id": record.id, "split": record.split}}
        yield {**line, "metrics": list(scores), **scores}


def _results(result: RunResult) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    for name, task in result.tasks.items():
        figures = {"value": task.value, "auc": task.auc}
        errors = {"value": task.stderr, "auc": task.auc_stderr}
        shown[name] = {"alias": name, "sample_len": task.n}
        for figure, value in figures.items():
            if value is not None:
                metric = task.metric if figure == "value" else "auc"
                shown[name][f"{metric},none"] = value
                error = errors[figure]
                shown[name][f"{metric}_stderr,none"] = "N/A" if error is None else error
    for name, found in (result.harness or {}).items():
        shown[name] = {"alias": name, "sample_len": found.n, **_pairs(found)}
    versions = {name: task.version for name, task in result.tasks.items()}
    theirs = {name: found.version for name, found in (result.harness or {}).items()}
    return {
        "results": shown,
        "versions": {**versions, **theirs},
        "config": {
            "model": "unlearnbench",
            "model_args": {
                "pretrained": result.checkpoint.path,
                "quant": result.condition.name,
                "dtype": result.settings.dtype,
            },
            "limit": result.settings.limit,
        },
    }


def _pairs(found: HarnessResult) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for metric in found.metrics:
        pairs[f"{metric.name},{metric.filter}"] = metric.value
        pairs[f"{metric.name}_stderr,{metric.filter}"] = (
            "N/A" if metric.stderr is None else metric.stderr
        )
    return pairs
