"""What an evaluation prints at its end: the table of results, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.errors import EvaluationError

if TYPE_CHECKING:
    from unlearnbench.failures import Failure
    from unlearnbench.results import RunResult
    from unlearnbench.tasks import TaskSpec

__all__ = ["summarize_evaluation"]


def summarize_evaluation(
    evaluate: Callable[[], list[RunResult]],
    output: Path,
    tasks: Callable[[], Sequence[TaskSpec]],
    show: Callable[[str], object],
) -> None:
    """Evaluate, and show the table, also where a part failed.

    Raises:
        EvaluationError: a part failed; the table with its cells was shown.
        KeyboardInterrupt: stopped, with a line that says how to go on.
    """
    try:
        results = evaluate()
    except EvaluationError as error:
        show(_text(error.results, error.failures, output, tasks()))
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; every answer so far is kept in {output}, and the same command (without "
            "--fresh) goes on from there"
        ) from None
    show(_text(results, (), output, tasks()))


def _text(
    results: Sequence[RunResult],
    failures: Sequence[Failure],
    output: Path,
    specs: Sequence[TaskSpec],
) -> str:
    from unlearnbench.run import run_path
    from unlearnbench.tables import results_table

    paths = {r.precision.name: run_path(output, r.checkpoint, r.precision.name) for r in results}
    paths |= {failure.precision: failure.folder for failure in failures}
    failed = {(failure.precision, failure.task) for failure in failures}
    wants = {spec.task: spec.want for spec in specs}
    lines = [f"failed: {failure.where}: {failure.message}" for failure in failures]
    return "\n".join([results_table(results, paths, wants, failed), *lines])
