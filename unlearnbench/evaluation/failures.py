"""A task or a condition that fails among several: the others go on, and the failure is told."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from unlearnbench.errors import (
    CheckpointError,
    EvaluationError,
    Failure,
    ModelOutputError,
    OutputError,
    UnlearnbenchError,
    one_line,
)
from unlearnbench.results import RunResult
from unlearnbench.util.files import is_full

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
    if _is_out_of_memory(error):
        return ModelOutputError(
            f"out of memory ({one_line(error, 120) or 'no more to allocate'}); use a smaller "
            "model, a smaller --batch-size, a condition of fewer bits, or another machine"
        )
    return error


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, RuntimeError) and "torch" in sys.modules:
        from unlearnbench.models.batches import is_out_of_memory

        return is_out_of_memory(error)
    return isinstance(error, MemoryError)
