"""What comes of an evaluation: failures that do not stop the rest, and the tables at its end."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.errors import (
    CheckpointError,
    EvaluationError,
    Failure,
    MemoryShortError,
    OutputError,
    UnlearnbenchError,
    one_line,
)
from unlearnbench.evaluation.options import Options
from unlearnbench.lm_eval.tables import harness_table
from unlearnbench.results import RunResult, TaskResult
from unlearnbench.runs.fingerprint import mixed_versions
from unlearnbench.runs.folder import run_path
from unlearnbench.tasks.registry import load_registry, split_names
from unlearnbench.util.files import is_full
from unlearnbench.util.text import fits, fitted_table, terminal_width, text_table

log = logging.getLogger("unlearnbench")


class Failures:
    """Collects what fails. ``asked`` is tasks times conditions; where that is one, nothing can go
    on, and its error is raised as it is.
    """

    def __init__(self, asked: int) -> None:
        self._asked = asked
        self._found: list[Failure] = []

    @contextmanager
    def guard(self, folder: Path, condition: str, task: str | None = None) -> Iterator[None]:
        """Note an error of what is inside and go on, unless it would hit everything else alike: a
        full disk, a checkpoint that cannot be used, or the user's wish to stop.
        """
        try:
            yield
        except Exception as raised:
            error = _explained(raised)
            if self._asked == 1 or isinstance(error, (CheckpointError, OutputError)):
                if error is raised:
                    raise
                raise error from None
            failure = Failure(condition, task, folder, error, traceback.format_exc())
            log.warning("%s failed: %s", failure.where, failure.message)
            error.__traceback__ = error.__cause__ = error.__context__ = None
            self._found.append(failure)

    def note(self, task: str, error: UnlearnbenchError) -> None:
        """A task that could not be opened at all; the caller has said so."""
        self._found.append(Failure(None, task, None, error, ""))

    def raise_if_any(self, found: Sequence[RunResult | None]) -> list[RunResult]:
        """The results that there are. Raises: EvaluationError where something failed."""
        results = [result for result in found if result is not None]
        if self._found:
            raise EvaluationError(self._found, results)
        return results


def _explained(error: Exception) -> Exception:
    """The system's own errors that a user can do something about, said in our words."""
    if isinstance(error, OSError) and is_full(error):
        what = error.filename or "a file of a library's"
        return OutputError(f"{what} cannot be written ({error.strerror}); free some space")
    lacking = isinstance(error, MemoryError)
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from unlearnbench.models.batches import is_out_of_memory

        lacking = is_out_of_memory(error)
    if lacking:
        return MemoryShortError(
            f"out of memory ({one_line(error, 120) or 'no more to allocate'}); use a smaller "
            "model, a smaller --batch-size, a condition of fewer bits, or another machine"
        )
    return error


_ARROWS = {"low": "(low)", "high": "(high)", "zero": "(near 0)"}


def evaluation_summary(
    results: Sequence[RunResult], tasks: str, options: Options, failures: Sequence[Failure] = ()
) -> str:
    """The tables of the tasks that were asked for, a line for each run whose tasks were measured
    with several versions of a package, and one for each failure.
    """
    registry, words = load_registry(options.include_path), split_names(tasks)
    known = [word for word in words if registry.knows(word)]
    wants = {spec.task: spec.want for spec in registry.resolve(known)} if known else {}
    paths = {
        result.condition.name: run_path(options.output, result.checkpoint, result.condition.name)
        for result in results
    }
    paths |= {f.condition: f.folder for f in failures if f.condition and f.folder}
    lines = []
    if wants:
        failed = {(f.condition, f.task) for f in failures if f.condition}
        lines.append(results_table(results, paths, wants, failed))
    if known != words and any(result.harness for result in results):
        lines.append(harness_table({str(paths[r.condition.name]): r for r in results}))
    mixed = {paths[r.condition.name]: mixed_versions(r) for r in results}
    lines += [f"{path}: {what}" for path, what in mixed.items() if what]
    return "\n".join([*lines, *(f"failed: {f.where}: {f.message}" for f in failures)])


def results_table(
    results: Sequence[RunResult],
    paths: Mapping[str, Path],
    wants: Mapping[str, str] | None = None,
    failed: Collection[tuple[str, str | None]] = (),
) -> str:
    """A row for each condition, a column for each task, and the run folders.

    paths: run folder by condition name. wants: the columns, each with its direction; all that the
    runs hold where None. failed: condition and task; None for a task stands for all of them.
    """
    if wants is None:
        wants = {name: task.want for result in results for name, task in result.tasks.items()}
    found = {r.condition.name: r.tasks for r in results}
    head = ["condition", *(f"{name} {_ARROWS[want]}" for name, want in wants.items()), "run folder"]
    rows: list[list[str]] = []
    for condition, path in paths.items():
        cells = []
        for name in wants:
            result = found.get(condition, {}).get(name)
            lost = (condition, name) in failed or (condition, None) in failed
            lost = lost and (result is None or result.drawn is not None)  # a part is no result
            cells.append("FAILED" if lost else _cell(result) if result else "not run")
        rows.append([condition, *cells, str(path)])
    whole, width = text_table(rows, head), terminal_width()
    if fits(whole, width):
        return whole
    folders = [f"{row[0]}: {row[-1]}" for row in rows]
    whole = text_table([row[:-1] for row in rows], head[:-1])
    if fits(whole, width):
        return "\n".join([whole, *folders])
    pairs = ((row[0], *cell) for row in rows for cell in zip(head[1:-1], row[1:-1], strict=True))
    return "\n".join([fitted_table([*pairs], [head[0], "task", "score"], width), *folders])


def _cell(result: TaskResult) -> str:
    parts = []
    if result.value is not None:
        more = "" if result.ci is None else f" [{result.ci[0]:.1f}, {result.ci[1]:.1f}]"
        parts.append(f"{result.value:.1f}{more}")
    if result.auc is not None:
        shown = f"AUC {result.auc:.3f}"
        if result.auc_ci is not None:
            shown += f" [{result.auc_ci[0]:.3f}, {result.auc_ci[1]:.3f}]"
        parts.append(shown)
    if result.drawn is not None:
        parts.append(f"of {result.n} of {result.drawn.of} samples alone")
    return ", ".join(parts)
