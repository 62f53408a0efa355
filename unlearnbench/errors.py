"""Every error that this package raises on purpose: bad input, or a measurement that cannot be
trusted; the command line exits 2. On forget metrics low is good, so a failure must never end up as
a number: it ends up here. Each message says what is wrong, where, and what to do, in one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnlearnbenchError(Exception):
    """As text it is one printable line, whatever file names and library messages it quotes."""

    def __str__(self) -> str:
        return one_line(super().__str__(), 2000)


class OptionError(UnlearnbenchError):
    """An option or argument has a value that makes no sense."""


class TaskError(UnlearnbenchError):
    """A task file is wrong or a task name is unknown."""


class DataError(UnlearnbenchError):
    """A task's rows are missing, malformed or not the pinned ones."""


class CheckpointError(UnlearnbenchError):
    """A model's files are missing, damaged, unsafe or do not fit together."""


class PrecisionError(UnlearnbenchError):
    """A precision is unknown or cannot run here."""


class NotInForceError(PrecisionError):
    """A condition was asked for and did not take effect."""


class ModelOutputError(UnlearnbenchError):
    """A model's answer cannot be used: non-finite logits, or a prompt longer than its context."""


class MemoryShortError(ModelOutputError):
    """There is not enough memory; elsewhere, or later, there may be."""


class MetricError(UnlearnbenchError):
    """A metric cannot be computed from what it was given."""


class TrainingError(UnlearnbenchError):
    """Training cannot go on: a loss or gradient is not finite, or nothing can be saved."""


class ResultError(UnlearnbenchError):
    """A run folder or result file is damaged, in the way or not writable."""


class InUseError(ResultError):
    """Another process is writing the folder."""


class JournalError(ResultError):
    """Half a task is there that was begun otherwise: with other options, or on another machine."""


class OutputError(ResultError):
    """A file cannot be written: the disk is full or read-only. What was complete stays readable."""


class StoreError(OutputError):
    """An object store refuses, or does not answer."""


class SweepError(UnlearnbenchError):
    """Some jobs of a sweep could not be done. The others are finished."""


@dataclass(frozen=True)
class Failure:
    """What failed among several evaluations, and why. ``condition`` and ``folder`` (the run's) are
    None where the task's data could not be read, ``task`` where the model could not be loaded.
    """

    condition: str | None
    task: str | None
    folder: Path | None
    error: Exception
    """Without its traceback, whose frames would keep the model in memory."""
    traceback: str

    @property
    def where(self) -> str:
        """As ``task at condition``."""
        return " at ".join(part for part in (self.task, self.condition) if part)

    @property
    def message(self) -> str:
        """The error in one line."""
        known = isinstance(self.error, UnlearnbenchError)
        kind = "" if known else f"internal error: {type(self.error).__name__}: "
        return kind + one_line(self.error, 400)


class EvaluationError(UnlearnbenchError):
    """Some of several evaluations failed. The others are finished and in their run folders."""

    failures: tuple[Failure, ...]
    """One a task and condition, or one a condition that could not be loaded."""
    results: tuple[Any, ...]
    """What was finished, a ``RunResult`` a condition, as ``evaluate`` would have returned it; a
    condition under which nothing was finished is not among them."""

    def __init__(self, failures: Sequence[Failure], results: Sequence[object]) -> None:
        self.failures, self.results = tuple(failures), tuple(results)
        said = "; ".join(f"{failure.where}: {failure.message}" for failure in failures)
        super().__init__(
            f"failed: {said}. The rest is finished; the same command tries these again"
        )

    def __reduce__(self) -> tuple[type[EvaluationError], tuple[object, ...]]:
        """What pickle makes it of, where a worker process raises it."""
        return EvaluationError, (self.failures, self.results)


def printable(text: str) -> str:
    """Keep line breaks and show other control characters, terminal escapes among them, as escapes:
    for text from task files and models that goes to a terminal.
    """
    return "".join(c if c == "\n" or c.isprintable() else repr(c)[1:-1] for c in text)


def one_line(text: object, limit: int = 600) -> str:
    """``text`` as one printable line of bounded length: messages quote file names and library
    errors, which may come from a stranger's checkpoint.
    """
    clean = printable(" ".join(str(text).split()))
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."
