"""One entry of a board: a checkpoint's runs and their samples, in one JSON file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unlearnbench.boards.definition import Board
from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.results import Checkpoint, RunResult, SampleRecord, TaskResult, upgrade
from unlearnbench.runs.entries import Entry, LoadedRun, load_entries
from unlearnbench.util.files import write_text
from unlearnbench.util.validation import read_model

# One of 50 rows a set at seven precisions has 1.3 MB without texts.
_LARGEST = 256 * 2**20

Role = Literal["unlearned", "target", "retrained"]


_CONFIG = ConfigDict(
    frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
)


class EntryRun(BaseModel):
    """One condition's ``run.json`` and its records by task."""

    model_config = _CONFIG

    run: RunResult
    samples: dict[str, tuple[SampleRecord, ...]]


class BoardEntry(BaseModel):
    """What ``leaderboard add`` writes."""

    model_config = _CONFIG

    format_version: Literal[1, 2] = 2
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)
    """The file's name too."""
    board: str
    role: Role
    note: str = ""
    texts: bool
    """Without texts the records hold ``sha256:`` hashes, salted with the board's name, in place of
    prompts, outputs and references."""
    runs: tuple[EntryRun, ...] = Field(min_length=1)

    def loaded(self) -> Entry:
        """The entry's runs as the comparison takes them.

        Raises:
            ResultError: two are of one precision.
        """
        runs = {
            part.run.condition.name: LoadedRun(
                Path(f"{self.name}.json"),
                part.run,
                {task: list(records) for task, records in part.samples.items()},
            )
            for part in self.runs
        }
        if len(runs) != len(self.runs):
            raise ResultError(f"{self.name} has two runs of one precision")
        return Entry(self.name, runs)


@dataclass(frozen=True)
class Submission:
    """What is said of an entry besides its runs."""

    name: str
    role: Role = "unlearned"
    note: str = ""
    texts: bool = True


def add_entry(board: Board, runs: Sequence[Path], submission: Submission) -> Path:
    """Write an entry from run folders; an earlier one of that name is replaced.

    Raises:
        OptionError: the runs are of several checkpoints, or texts may not be published here.
        ResultError: a run lacks a task of the board, is damaged, or cannot be written.
    """
    if submission.texts and not board.rules.publish_texts:
        raise OptionError(f"{board.name} publishes no texts; add with --no-texts")
    entries = load_entries(runs)
    if len(entries) != 1:
        raise OptionError("an entry is of one checkpoint; give the runs of one")
    parts = [_part(board, run, submission.texts) for run in entries[0].runs.values()]
    try:
        entry = BoardEntry(
            name=submission.name,
            board=board.name,
            role=submission.role,
            note=submission.note,
            texts=submission.texts,
            runs=tuple(parts),
        )
    except ValidationError as error:
        raise OptionError(f"--name: {one_line(error.errors()[0]['msg'])}") from None
    path = board.entries / f"{entry.name}.json"
    write_text(path, entry_json(entry))
    return path


def _part(board: Board, run: LoadedRun, texts: bool) -> EntryRun:
    tasks = {name: run.task(name) for name in board.rules.tasks}
    samples = {name: tuple(run.records(name)) for name in tasks}
    if not texts:
        hidden = partial(digest, board=board.name)
        samples = {n: tuple(r.with_texts(hidden) for r in rs) for n, rs in samples.items()}
    tasks = {name: _without_path(found) for name, found in tasks.items()}
    checkpoint = _named(run.result.checkpoint)
    result = run.result.model_copy(update={"tasks": tasks, "checkpoint": checkpoint})
    return EntryRun(run=result, samples=samples)


def _last(path: str) -> str:
    """A path may tell who made the run, and where; its last part is enough."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _named(checkpoint: Checkpoint) -> Checkpoint:
    base = None if checkpoint.base is None else _named(checkpoint.base)
    return checkpoint.model_copy(update={"path": _last(checkpoint.path), "base": base})


def _without_path(task: TaskResult) -> TaskResult:
    reference = task.auc_reference
    if reference is None or reference.kind != "run":
        return task
    path, at, precision = reference.source.rpartition(" at ")
    trimmed = reference.model_copy(update={"source": f"{_last(path)}{at}{_last(precision)}"})
    return task.model_copy(update={"auc_reference": trimmed})


def digest(text: str, board: str) -> str:
    """What a board that publishes no texts has in a text's place."""
    content = f"unlearnbench:{board}:{text}".encode(errors="surrogatepass")
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def entry_json(entry: BoardEntry) -> str:
    """The one way to write an entry: a file that differs from it by a digit is not ours."""
    return _as_text(entry.model_dump(mode="python", exclude_none=True))


def _as_text(content: object) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def is_as_written(path: Path, entry: BoardEntry) -> bool:
    """Whether the file is, digit by digit, as ``add_entry`` wrote it. One of format 1 is written as
    it was then, and says in the words of format 2 what is written now.
    """
    content = path.read_bytes()
    if entry.format_version == 1:
        raw = json.loads(content)
        if content != _as_text(raw).encode("ascii"):
            return False
        raw["runs"] = [{**part, "run": upgrade(part["run"])} for part in raw["runs"]]
        content = _as_text(raw).encode("ascii")
    return content == entry_json(entry).encode("ascii")


def read_entry(path: Path) -> BoardEntry:
    """Read an entry's file.

    Raises:
        ResultError: it is no entry; says where.
    """
    entry = read_model(path, BoardEntry, ResultError, _LARGEST)
    if path.stem != entry.name:
        raise ResultError(f"{path} holds the entry {entry.name}; the two names must be one")
    return entry
