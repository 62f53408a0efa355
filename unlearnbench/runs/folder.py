"""A run folder on disk, ``OUT/<model>/<condition>/``: ``run.json``, ``samples/<task>.jsonl``, and
``partial/<task>.jsonl`` while a task is under way.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unlearnbench.errors import OutputError, ResultError, one_line
from unlearnbench.results import (
    FORMAT_VERSION,
    RECORD_ADAPTER,
    Checkpoint,
    Condition,
    RunResult,
    SampleRecord,
    Settings,
)
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.util.files import (
    LOCK_FILES,
    read_bytes,
    read_json,
    remove_leftovers,
    write_whole,
    writing,
)
from unlearnbench.util.validation import as_model, first_fault

# Beside the run folders: what --fresh set aside. Nothing looks for runs in there.
ASIDE = ".old"


def model_folder_name(checkpoint: Checkpoint) -> str:
    """The checkpoint's base name and 8 hex digits of its weights' hash, safe as a folder name."""
    base = checkpoint.path.rstrip("/").rsplit("/", 1)[-1]
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", base).strip("._-")[:80] or "model"
    return f"{safe}-{checkpoint.weights_sha256[:8]}"


def run_path(output: Path, checkpoint: Checkpoint, condition: str) -> Path:
    """``output/<model>/<condition>``."""
    return output / model_folder_name(checkpoint) / condition


def require_writable(folder: Path) -> None:
    """Make ``folder`` and prove that a file can be written there, before any work is done; raise
    OutputError where it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"output folder {folder} is not writable ({error.strerror}); use another --output"
        ) from None


@dataclass(frozen=True)
class RunFolder:
    """Reads and writes one run folder. Files appear whole or not at all."""

    path: Path

    @property
    def run_file(self) -> Path:
        """Where the result is."""
        return self.path / "run.json"

    def samples_file(self, task: str) -> Path:
        """Where a task's records are. Raises ResultError where the name, which may be a
        stranger's, leads elsewhere.
        """
        if not task or task.startswith(".") or set(task) & set("/\\\0\n"):
            raise ResultError(f"{self.path}: {one_line(task, 80)!r} is no task's name")
        return self.path / "samples" / f"{task}.jsonl"

    def journal_file(self, task: str) -> Path:
        """Where a task's answers are until it is complete."""
        return self.path / "partial" / f"{task}.jsonl"

    def require_folder(self) -> None:
        """Raise ResultError where something else is in the folder's place."""
        if self.path.exists() and not self.path.is_dir():
            raise ResultError(f"{self.path} is in the way: no folder; use another --output")

    def set_aside(self) -> Path | None:
        """Move the folder to ``.old/<condition>-<n>`` beside it; returns where, None if there was
        nothing in it. The folder is gone then, and its lock with it. Raises OutputError where it
        cannot be moved.
        """
        if not self.path.is_dir() or {p.name for p in self.path.iterdir()} <= {*LOCK_FILES}:
            return None
        aside = self.path.parent / ASIDE
        n = 1
        while (aside / f"{self.path.name}-{n}").exists():
            n += 1
        with writing(aside):
            aside.mkdir(exist_ok=True)
            moved = self.path.rename(aside / f"{self.path.name}-{n}")
        for name in LOCK_FILES:
            with contextlib.suppress(OSError):
                (moved / name).unlink()
        return moved

    def clean(self, finished: Collection[str]) -> None:
        """Remove what killed processes left: files that are not whole, and the journals of tasks
        that are ``finished``. Only under the folder's lock.
        """
        for folder in (self.path, self.path / "samples"):
            remove_leftovers(folder)
        with contextlib.suppress(OSError):
            for task in finished:
                journal = self.journal_file(task)
                for path in (journal, journal.with_suffix(".search.json")):
                    path.unlink(missing_ok=True)
            self.journal_file("").parent.rmdir()  # fails where a task is under way

    def read(self) -> RunResult | None:
        """The result that is here, None for a new folder. Raises ResultError where it cannot be
        read.
        """
        self.require_folder()
        if not self.run_file.exists():
            return None
        try:
            return read_run(self.path)
        except ResultError as error:
            raise ResultError(f"{error}; remove {self.path} to evaluate again") from None

    def require_same(
        self, found: RunResult, checkpoint: Checkpoint, settings: Settings, condition: Condition
    ) -> None:
        """Refuse to mix runs in one folder: raise ResultError, which names what differs, where the
        run ``found`` here is not what is asked for.
        """
        own = found.checkpoint
        there = Fingerprint.of_run(own, found.settings, found.condition, checkpoint)
        asked = Fingerprint.of_run(checkpoint, settings, condition, own)
        if there != asked:
            raise ResultError(
                f"{self.path} holds a run of another configuration: "
                f"{'; '.join(differences(there, asked))}; use another --output, or the same options"
            )

    def write_run(self, result: RunResult) -> None:
        """Write ``run.json``, replacing an earlier one in one step."""
        # Not pydantic's own JSON: it cannot write a path that is no valid Unicode.
        text = json.dumps(result.model_dump(exclude_none=True), indent=2, allow_nan=False)
        self.write_file(self.run_file, text.encode("ascii") + b"\n")

    def write_records(self, task: str, records: Sequence[SampleRecord]) -> str:
        """Write a task's records in the order given and return the file's SHA-256."""
        content = encode_records(records)
        self.write_file(self.samples_file(task), content)
        return hashlib.sha256(content).hexdigest()

    def read_records(self, task: str, sha256: str) -> list[SampleRecord]:
        """Read a task's records and check them against the hash in ``run.json``. Raises ResultError
        where the file is missing, changed or malformed.
        """
        path = self.samples_file(task)
        try:
            content = read_bytes(path, ResultError)
        except ResultError as error:
            raise ResultError(f"{error}; remove {self.path} to evaluate again") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ResultError(
                f"{path} is not the file that run.json names (its hash differs); "
                f"remove {self.path} to evaluate again"
            )
        lines = content.split(b"\n")
        return [_parse_record(path, i, line) for i, line in enumerate(lines, start=1) if line]

    def write_file(self, path: Path, content: bytes) -> None:
        """Write a file of the run folder whole. Raises OutputError where it cannot be written."""
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content)


def encode_records(records: Sequence[SampleRecord]) -> bytes:
    """A samples file's content."""
    # json.dumps escapes all but ASCII: no odd line separator, and lone surrogates survive.
    lines = (json.dumps(record.model_dump(exclude_none=True)) for record in records)
    return "".join(f"{line}\n" for line in lines).encode("ascii")


def _parse_record(path: Path, number: int, line: bytes) -> SampleRecord:
    try:  # json, not pydantic's parser, which refuses lone surrogates
        return RECORD_ADAPTER.validate_python(json.loads(line))
    except (ValueError, RecursionError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else one_line(error)
        raise ResultError(f"{path}:{number}: no valid record: {fault}") from None


def read_run(folder: Path) -> RunResult:
    """Read and check ``run.json`` of a run folder.

    Raises:
        ResultError: it is missing, damaged or of a format that this version does not know.
    """
    path = folder / "run.json"
    content = read_json(path, ResultError)
    version = content.get("format_version") if isinstance(content, dict) else None
    if version not in (1, FORMAT_VERSION):
        raise ResultError(
            f"{path} has format_version {version!r}; this version of unlearnbench reads 1 "
            f"and {FORMAT_VERSION}"
        )
    parts: list[tuple[str, Any]] = [("", content)]
    for where, part in parts:  # which grows while it is read
        if part is None:
            raise ResultError(f"{path}: {where}: null; what was not measured is absent")
        inside = part if isinstance(part, dict) else {}
        if isinstance(part, list):
            inside = dict(enumerate(part))
        parts += [(f"{where}.{key}" if where else str(key), inner) for key, inner in inside.items()]
    return as_model(path, content, RunResult, ResultError)
