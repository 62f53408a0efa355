"""A board: its definition in ``board.yaml``, and one JSON file an entry: a checkpoint's runs with
the scores of their samples that decide.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from unlearnbench.boards.columns import (
    decisive,
    decisive_result,
    packed,
    shorten,
    unpacked,
)
from unlearnbench.errors import OptionError, ResultError, one_line
from unlearnbench.results import (
    FULL,
    Checkpoint,
    Document,
    Role,
    RunResult,
    SampleRecord,
    TaskResult,
    upgrade,
)
from unlearnbench.runs.entries import Entry, LoadedRun, load_entries, require_whole
from unlearnbench.tasks.registry import Registry, load_registry
from unlearnbench.util.files import read_json, write_text
from unlearnbench.util.validation import as_model, read_yaml_model

# One of format 2 of 50 rows a set at seven precisions has 1.3 MB without texts.
_LARGEST = 256 * 2**20
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class Definition(Document, strict=True):
    """The content of ``board.yaml``: what every entry must hold, and how entries are ranked."""

    title: str = Field(min_length=1)
    description: str = ""
    base_model: str
    """What the target was trained from, in words."""
    protocol: str = "muse"
    tasks: dict[str, float] = Field(min_length=1)
    """Every task with its version."""
    precisions: Names
    """Every entry but the retrained model's needs a run at each; ``none`` is one of them."""
    utility_floor: float = Field(ge=0, le=1)
    ranking: Names
    """The tasks whose excess over the retrained model ranks entries by its worst case."""
    min_samples: int = Field(default=1, ge=1)
    publish_texts: bool = False
    """Whether prompts, outputs and references may be published; else entries carry hashes."""

    @model_validator(mode="after")
    def _fits(self) -> Definition:
        unknown = sorted(set(self.ranking) - set(self.tasks))
        if unknown:
            raise ValueError(f"ranking: {unknown[0]} is not in tasks")
        if FULL not in self.precisions:
            raise ValueError(f"precisions: {FULL}, full precision, is missing")
        return self


@dataclass(frozen=True)
class Board:
    """A board's folder and its definition."""

    folder: Path
    rules: Definition

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def entries(self) -> Path:
        """Where the entries' JSON files are."""
        return self.folder / "entries"

    def registry(self) -> Registry:
        """The package's tasks and those of the board's own ``tasks`` folder."""
        own = self.folder / "tasks"
        return load_registry([own] if own.is_dir() else [])


def read_board(folder: Path) -> Board:
    """A board's definition. Raises OptionError, with the line, where it is missing or wrong."""
    path = folder / "board.yaml"
    if not path.is_file():
        raise OptionError(f"{folder}: no board.yaml there")
    return Board(folder, read_yaml_model(path, Definition))


def find_boards(folders: Sequence[Path]) -> list[Board]:
    """The boards that are given, or those below a folder of boards. Raises OptionError as
    ``read_board``, and where a folder has no board.
    """
    found: list[Path] = []
    for folder in folders:
        files = [*folder.glob("board.yaml")] or sorted(folder.glob("*/board.yaml"))
        if not files:
            raise OptionError(f"{folder}: no board.yaml there or below")
        found += [file.parent for file in files]
    return [read_board(folder) for folder in found]


class EntryRun(Document):
    """One condition's ``run.json`` and its records by task."""

    run: RunResult
    samples: dict[str, tuple[SampleRecord, ...]]


class BoardEntry(Document):
    """What ``leaderboard add`` writes."""

    format_version: Literal[1, 2, 3] = 2
    """From 3 on records hold the scores that decide, see ``compact``, and the file has columns."""
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=80)
    """The file's name too."""
    board: str
    role: Role
    note: str = ""
    texts: bool
    """Without texts the records hold ``sha256:`` hashes, salted with the board's name, in place of
    prompts, outputs and references."""
    runs: tuple[EntryRun, ...] = Field(min_length=1)

    @property
    def is_compact(self) -> bool:
        """Whether its records hold the scores that decide alone."""
        return self.format_version == 3

    def loaded(self) -> Entry:
        """The entry's runs as the comparison takes them, with hashes as ``compact`` has them;
        ResultError where two are of one precision, or one is of a part.
        """
        path, runs = Path(f"{self.name}.json"), dict[str, LoadedRun]()
        long = not (self.texts or self.is_compact)
        for part in self.runs:
            records = {
                task: [record.with_texts(shorten) if long else record for record in each]
                for task, each in part.samples.items()
            }
            require_whole(found := LoadedRun(path, part.run, records))
            runs[part.run.condition.name] = found
        if len(runs) != len(self.runs):
            raise ResultError(f"{self.name} has two runs of one precision")
        return Entry(self.name, runs)


def anchor(board: Board, entries: Sequence[BoardEntry], role: Role) -> BoardEntry:
    """The board's target or retrained model. Raises OptionError where it is not one entry."""
    found = [entry for entry in entries if entry.role == role]
    if len(found) != 1:
        raise OptionError(f"{board.name} needs one {role} entry and has {len(found)}")
    return found[0]


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
        entry = BoardEntry(**vars(submission), board=board.name, runs=tuple(parts))
    except ValidationError as error:
        raise OptionError(f"--name: {one_line(error.errors()[0]['msg'])}") from None
    path = board.entries / f"{entry.name}.json"
    write_text(path, entry_json(compact(entry)))
    return path


def compact(entry: BoardEntry) -> BoardEntry:
    """The same in format 3: of each sample the scores that decide, which are the task's own figure
    or attack, and what utility is made of; of a task the figures that follow from these. The
    rest is held by ``records_sha256`` alone. Without texts, hashes are short and a generation's
    number of tokens is left out. Raises ResultError where a text has no score of its task's attack.
    """
    parts = []
    for part in entry.runs:
        tasks = {name: decisive_result(task) for name, task in part.run.tasks.items()}
        samples = {
            name: tuple(decisive(record, tasks[name], entry.texts) for record in records)
            for name, records in part.samples.items()
        }
        run = part.run.model_copy(update={"tasks": tasks})
        parts.append(EntryRun(run=run, samples=samples))
    return entry.model_copy(update={"format_version": 3, "runs": tuple(parts)})


def _part(board: Board, run: LoadedRun, texts: bool) -> EntryRun:
    """A run of the board's tasks, without the folders of its maker and, if need be, its texts."""
    tasks = {name: _without_folders(run.task(name)) for name in board.rules.tasks}
    samples = {name: tuple(run.records(name)) for name in tasks}
    if not texts:
        hidden = partial(digest, board=board.name)
        samples = {n: tuple(r.with_texts(hidden) for r in rs) for n, rs in samples.items()}
    update = {"tasks": tasks, "checkpoint": _named(run.result.checkpoint)}
    return EntryRun(run=run.result.model_copy(update=update), samples=samples)


def _last(path: str) -> str:
    """A path may tell who made the run, and where; its last part is enough."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def _named(checkpoint: Checkpoint) -> Checkpoint:
    base, given = checkpoint.base and _named(checkpoint.base), checkpoint.tokenizer
    if given is not None:
        given = given.model_copy(update={"path": _last(given.path)})
    update = {"path": _last(checkpoint.path), "base": base, "tokenizer": given}
    return checkpoint.model_copy(update=update)


def _without_folders(task: TaskResult) -> TaskResult:
    reference = task.auc_reference
    if reference is None or reference.kind != "run":
        return task
    path, at, precision = reference.source.rpartition(" at ")
    trimmed = reference.model_copy(update={"source": f"{_last(path)}{at}{_last(precision)}"})
    return task.model_copy(update={"auc_reference": trimmed})


def digest(text: str, board: str) -> str:
    """What a board that publishes no texts has in a text's place, before it is shortened."""
    content = f"unlearnbench:{board}:{text}".encode(errors="surrogatepass")
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def entry_json(entry: BoardEntry) -> str:
    """The one way to write an entry: a file that differs from it by a digit is not ours. Raises
    ResultError where a task's samples are not numbered rows, one split after another.
    """
    content = entry.model_dump(mode="python", exclude_none=True)
    try:
        return _as_text(packed(content) if entry.is_compact else content)
    except ValueError as error:
        raise ResultError(f"{entry.name}: {one_line(error)}") from None


def _as_text(content: object) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def is_as_written(path: Path, entry: BoardEntry) -> bool:
    """Whether the file is, digit by digit, as it was written. One of format 1 is written as it was
    then, and says in the words of format 2 what was written later.
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
    """An entry's file. Raises ResultError, which says where, if it is none."""
    content = read_json(path, ResultError, _LARGEST)
    if isinstance(content, dict) and content.get("format_version") == 3:
        try:
            content = unpacked(content)
        except (ValueError, RecursionError) as error:
            raise ResultError(f"{path}: {one_line(error)}") from None
    entry = as_model(path, content, BoardEntry, ResultError)
    if path.stem != entry.name:
        raise ResultError(f"{path} holds the entry {entry.name}; the two names must be one")
    return entry
