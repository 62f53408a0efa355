"""What an evaluation prints at its end: the table of results, and what failed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.errors import EvaluationError
from unlearnbench.util.text import text_table

if TYPE_CHECKING:
    from unlearnbench.errors import Failure
    from unlearnbench.results import RunResult, TaskResult


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


_ARROWS = {"low": "(low)", "high": "(high)", "zero": "(near 0)"}


def results_table(
    results: Sequence[RunResult],
    paths: Mapping[str, Path],
    wants: Mapping[str, str] | None = None,
    failed: Collection[tuple[str, str | None]] = (),
) -> str:
    """A row for each precision, a column for each task, and the run folders.

    paths: run folder by precision name. wants: the columns, each with its direction; all that the
    runs hold where None. failed: precision and task; None for a task stands for all of them.
    """
    if wants is None:
        wants = {name: task.want for result in results for name, task in result.tasks.items()}
    found = {result.condition.name: result.tasks for result in results}
    head = ["precision", *(f"{name} {_ARROWS[want]}" for name, want in wants.items()), "run folder"]
    rows = [
        [
            precision,
            *(_cell(found.get(precision, {}), name, (precision, name), failed) for name in wants),
            str(path),
        ]
        for precision, path in paths.items()
    ]
    return text_table(rows, head)


def _cell(
    tasks: Mapping[str, TaskResult],
    name: str,
    place: tuple[str, str],
    failed: Collection[tuple[str, str | None]],
) -> str:
    if name not in tasks:
        return "FAILED" if place in failed or (place[0], None) in failed else "not run"
    result, parts = tasks[name], []
    if result.value is not None:
        parts.append(_plus_minus(result.value, result.stderr, 1))
    if result.auc is not None:
        shown = f"AUC {result.auc:.3f}"
        if result.auc_ci is not None:
            shown += f" [{result.auc_ci[0]:.3f}, {result.auc_ci[1]:.3f}]"
        parts.append(shown)
    return ", ".join(parts)


def _plus_minus(value: float, stderr: float | None, digits: int) -> str:
    shown = f"{value:.{digits}f}"
    return shown if stderr is None else f"{shown} +- {stderr:.{digits}f}"
