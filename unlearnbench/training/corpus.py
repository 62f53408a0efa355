"""Texts to train on: files of rows, plain text, or a registered task's own split."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unlearnbench.errors import DataError, OptionError, one_line
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_splits, read_rows, rows_sha256
from unlearnbench.tasks.spec import Row, TaskSpec
from unlearnbench.training.options import CorpusOptions

log = logging.getLogger("unlearnbench")

TextRole = Literal["forget", "retain", "auxiliary", "data"]
"""What texts are for; ``data``: what ``finetune`` trains on."""


@dataclass(frozen=True)
class Document:
    """A text, or with ``answer`` a question-answer pair, and the row that it came from."""

    text: str
    where: str
    answer: str | None = None


@dataclass(frozen=True)
class Corpus:
    """The documents of one or more sources, and what identifies each."""

    documents: tuple[Document, ...]
    sources: tuple[tuple[str, int, str], ...]
    """(as given, rows, sha256 of the rows)."""


def load_corpus(given: Sequence[str], role: TextRole, options: CorpusOptions) -> Corpus:
    """Read every source in the order given.

    Raises:
        DataError: a source is missing, empty, or a row has no text; says the row.
        OptionError: none was given, or a task has no such split.
    """
    if not given:
        raise OptionError(f"--{role} is missing; give a file or task:NAME")
    documents: list[Document] = []
    sources = []
    for name in given:
        rows, label = _read(name, role, options)
        if not rows:
            raise DataError(f"{label} has no rows; there is nothing to learn from")
        documents += _documents(rows, label, options)
        sources.append((one_line(name), len(rows), rows_sha256(rows)))
    return Corpus(tuple(documents), tuple(sources))


def _read(name: str, role: TextRole, options: CorpusOptions) -> tuple[Sequence[Row], str]:
    if name.startswith("task:"):
        return _task_rows(name.removeprefix("task:"), role, options)
    path = Path(name)
    if path.suffix != ".txt":
        return read_rows(path), name
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from None
    return ([{options.text_field: text}] if text.strip() else []), name


def _task_rows(name: str, role: TextRole, options: CorpusOptions) -> tuple[Sequence[Row], str]:
    (spec,) = load_registry(options.include_path).resolve([name])
    _require_about(spec, role)
    root = options.data_dir or os.environ.get("UNLEARNBENCH_DATA")
    where = DataOptions(Path(root) if root else None, options.allow_data_drift)
    return load_splits(spec, where)[spec.own_split].rows, f"{name}: {spec.own_split}"


def _require_about(spec: TaskSpec, role: TextRole) -> None:
    """A task is about forgotten or about retained text, and unlearning takes it only as that."""
    if role not in (spec.about, "auxiliary", "data"):
        raise OptionError(
            f"--{role} task:{spec.task}: this task measures what is to "
            f"{'stay' if spec.about == 'retain' else 'go'}; use it with --{spec.about}"
        )


def _documents(rows: Sequence[Row], label: str, options: CorpusOptions) -> list[Document]:
    """A row whose text is blank teaches nothing; published sets (MUSE-News) have some."""
    blank = {i for i, row in enumerate(rows) if _is_blank(row.get(options.text_field))}
    kept = [(i, row) for i, row in enumerate(rows) if i not in blank]
    if not kept:
        raise DataError(f"{label}: every text is blank; there is nothing to learn from")
    if blank:
        log.warning("%s: %d of %d texts are blank and left out", label, len(blank), len(rows))
    return [_document(row, f"{label}/{i}", options) for i, row in kept]


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _document(row: Row, where: str, options: CorpusOptions) -> Document:
    fields = {key: value for key, value in row.items() if isinstance(value, str) and value.strip()}
    if {"question", "answer"} <= set(fields):
        return Document(fields["question"], where, fields["answer"])
    if options.text_field in fields:
        return Document(fields[options.text_field], where)
    if {"prompt", "gt"} <= set(fields):
        # MUSE-News cuts between two words and keeps the blank on neither side.
        apart = fields["prompt"][-1].isspace() or fields["gt"][0].isspace()
        return Document(fields["prompt"] + ("" if apart else " ") + fields["gt"], where)
    raise DataError(
        f"{where}: no text: a row needs a field {options.text_field!r}, or 'question' and "
        f"'answer', or 'prompt' and 'gt', that is not empty; this one has "
        f"{one_line(sorted(row), 100)}"
    )
