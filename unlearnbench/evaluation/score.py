"""How a training scores its own checkpoints."""

from __future__ import annotations

from pathlib import Path

from unlearnbench.evaluation.evaluate import evaluate
from unlearnbench.evaluation.options import Options
from unlearnbench.results import RunResult
from unlearnbench.training.options import CorpusOptions, SelectOptions


def score_checkpoint(
    corpus: CorpusOptions, folder: Path, select: SelectOptions, runs: Path, *conditions: str
) -> list[RunResult]:
    """Evaluate a checkpoint of a training as any checkpoint is: with its ``corpus``, what a ``Job``
    takes as ``score``.
    """
    shared = {"data_dir", "include_path", "allow_data_drift", "answer_blank"}
    data = corpus.model_dump(include=shared)
    options = Options(output=runs, limit=select.eval_limit, dtype=select.eval_dtype, **data)
    return evaluate(folder, select.names, conditions, options=options)
