"""What an evaluation prints at its end: the table of results, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.errors import EvaluationError

if TYPE_CHECKING:
    from unlearnbench.errors import Failure
    from unlearnbench.results import RunResult


@dataclass(frozen=True)
class Shown:
    """wants: our tasks by name, with what is wanted of them. harness: whether lm-eval's were asked
    for.
    """

    wants: Mapping[str, str]
    harness: bool = False


def summarize_evaluation(
    evaluate: Callable[[], list[RunResult]],
    output: Path,
    shown: Callable[[], Shown],
    show: Callable[[str], object],
) -> list[RunResult]:
    """Evaluate, and show the tables, also where a part failed. Returns the results.

    Raises:
        EvaluationError: a part failed; the table with its cells was shown.
        KeyboardInterrupt: stopped, with a line that says how to go on.
    """
    try:
        results = evaluate()
    except EvaluationError as error:
        show(_text(error.results, error.failures, output, shown()))
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted; every answer so far is kept in {output}, and the same command (without "
            "--fresh) goes on from there"
        ) from None
    show(_text(results, (), output, shown()))
    return results


def _text(
    results: Sequence[RunResult],
    failures: Sequence[Failure],
    output: Path,
    shown: Shown,
) -> str:
    from unlearnbench.evaluation.run import run_path
    from unlearnbench.lm_eval.tables import harness_table
    from unlearnbench.recovery.tables import results_table

    paths = {r.condition.name: run_path(output, r.checkpoint, r.condition.name) for r in results}
    paths |= {f.condition: f.folder for f in failures if f.condition and f.folder}
    failed = {(f.condition, f.task) for f in failures if f.condition}
    lines = []
    if shown.wants:
        lines.append(results_table(results, paths, shown.wants, failed))
    if shown.harness and any(result.harness for result in results):
        lines.append(harness_table({str(paths[r.condition.name]): r for r in results}))
    lines += [f"failed: {failure.where}: {failure.message}" for failure in failures]
    return "\n".join(lines)
