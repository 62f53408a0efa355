"""How many samples have another score than one prompt at a time gives, by rounding."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.rivals import Plain, load_plain
from tests.benchmarks.samples import TASKS, ask, data_folder, requests_of
from unlearnbench.checkpoints.checkpoint import DTYPES
from unlearnbench.results import GenerationRecord
from unlearnbench.runs.folder import RunFolder
from unlearnbench.tasks.spec import generation_metric

__all__ = ["measure_rounding"]


def measure_rounding(folder: Path, options: Namespace) -> dict[str, Any]:
    """Every task at every precision by an evaluation in automatic batches, and by the plain
    evaluator in the same dtype: how many samples have another score, how many another text, and
    what that does to the mean score (of texts: to their mean log-probability).
    """
    found: dict[str, Any] = {}
    for precision in options.precisions:
        records = _our_records(folder, options, precision)
        dtype = getattr(torch, DTYPES[options.dtype])
        plain = Plain(*load_plain(folder, precision, dtype, options.device))
        for task in TASKS:
            answers = ask(plain, requests_of(task, options.limit))
            own = {f"{task}:{record.id}": record for record in records[task]}
            if own.keys() != answers.keys():
                raise ValueError(f"{task}: not the same samples")
            found[f"{precision} {task}"] = _compare(own, answers)
            said = json.dumps(found[f"{precision} {task}"])
            print(f"{precision} {task}, {options.dtype}: {said}", file=sys.stderr, flush=True)
        del plain
    return found


def _our_records(folder: Path, options: Namespace, precision: str) -> dict[str, list[Any]]:
    from unlearnbench import evaluate
    from unlearnbench.runs.folder import run_path

    with tempfile.TemporaryDirectory() as out:
        (result,) = evaluate(
            str(folder),
            list(TASKS),
            precision,
            output=out,
            data_dir=data_folder(),
            limit=options.limit,
            dtype=options.dtype,
            device=options.device,
        )
        run = RunFolder(run_path(Path(out), result.checkpoint, precision))
        return {
            task: list(run.read_records(task, own.records_sha256))
            for task, own in result.tasks.items()
        }


def _compare(records: Mapping[str, Any], answers: Mapping[str, Any]) -> dict[str, Any]:
    ours, plain, texts = [], [], 0
    for name, record in records.items():
        if isinstance(record, GenerationRecord):
            metric = generation_metric("rougeL")
            ours.append(record.score)
            plain.append(metric.score_output(answers[name], record.target)[metric.HEADLINE])
            texts += record.output.strip() != answers[name].strip()
        else:
            ours.append(-record.scores["PPL"])
            plain.append(answers[name] / record.n_tokens)
    pairs = list(zip(ours, plain, strict=True))
    return {
        "samples": len(pairs),
        # ROUGE at all; a text's mean log-probability by more than a thousandth of it.
        "scores changed": sum(
            a != b if isinstance(record, GenerationRecord) else abs(a - b) > 1e-3 * abs(b)
            for (a, b), record in zip(pairs, records.values(), strict=True)
        ),
        "texts changed": texts,
        "mean score": [sum(ours) / len(ours), sum(plain) / len(plain)],
        "largest difference": max(abs(a - b) for a, b in pairs),
    }
