"""How many samples' scores another batch changes, by the rounding of its products."""

from __future__ import annotations

import json
import sys
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from tests.benchmarks.samples import TASKS, data_folder
from unlearnbench.results import GenerationRecord
from unlearnbench.runfolder import RunFolder

__all__ = ["measure_rounding"]


def measure_rounding(folder: Path, options: Namespace) -> dict[str, Any]:
    """Every task in automatic batches and one sample at a time: how many samples have another
    score, how many another text, and what that does to the task's score.
    """
    from unlearnbench import evaluate
    from unlearnbench.run import run_path

    found: dict[str, Any] = {}
    records: dict[tuple[str, Any], list[Any]] = {}
    values: dict[tuple[str, Any], float | None] = {}
    sizes: tuple[Any, ...] = ("auto", 1)
    for size in sizes:
        with tempfile.TemporaryDirectory() as out:
            (result,) = evaluate(
                str(folder),
                list(TASKS),
                output=out,
                data_dir=data_folder(),
                limit=options.limit,
                dtype=options.dtype,
                device=options.device,
                batch_size=size,
            )
            run = RunFolder(run_path(Path(out), result.checkpoint, "none"))
            for task, own in result.tasks.items():
                records[task, size] = run.read_records(task, own.records_sha256)
                values[task, size] = own.auc if own.value is None else own.value
    for task in TASKS:
        pairs = list(zip(*(records[task, size] for size in sizes), strict=True))
        found[task] = {
            "samples": len(pairs),
            "scores changed": sum(_changed(a, b) for a, b in pairs),
            "texts changed": sum(_text(a) != _text(b) for a, b in pairs),
            "score": [values[task, size] for size in sizes],
        }
        print(f"{task}, {options.dtype}: {json.dumps(found[task])}", file=sys.stderr, flush=True)
    return found


def _text(record: Any) -> str:
    return record.output if isinstance(record, GenerationRecord) else ""


def _changed(a: Any, b: Any) -> bool:
    """ROUGE at all; a text's attack score by more than a thousandth of it."""
    if isinstance(a, GenerationRecord):
        return bool((a.score, a.scores) != (b.score, b.scores))
    return any(abs(a.scores[k] - b.scores[k]) > 1e-3 * abs(b.scores[k]) for k in a.scores)
