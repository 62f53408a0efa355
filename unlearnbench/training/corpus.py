"""Texts to train on, and the token sequences that they become: files of rows, plain text, or a
registered task's own split.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unlearnbench.checkpoints.origin import SourceRecord
from unlearnbench.errors import DataError, ModelOutputError, OptionError, one_line
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_splits, read_rows, rows_sha256
from unlearnbench.tasks.spec import Row
from unlearnbench.training.options import CorpusOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")

TextRole = Literal["forget", "retain", "auxiliary", "unseen", "data"]
"""What texts are for; ``data``: what ``finetune`` trains on."""


@dataclass(frozen=True)
class TextDocument:
    """A text, or with ``answer`` a question-answer pair, and the row that it came from."""

    text: str
    where: str
    answer: str | None = None


def load_corpus(
    given: Sequence[str], role: TextRole, options: CorpusOptions
) -> tuple[list[TextDocument], list[SourceRecord]]:
    """The documents of every source in the order given, and what identifies each source. Raises
    DataError where a source is missing, empty, or a row has no text.
    """
    if not given:
        raise OptionError(f"--{role} is missing; give a file or task:NAME")
    documents: list[TextDocument] = []
    sources: list[SourceRecord] = []
    for name in given:
        rows, label = _read(name, role, options)
        if not rows:
            raise DataError(f"{label} has no rows; there is nothing to learn from")
        documents += _documents(rows, label, options)
        source, sha256 = one_line(name), rows_sha256(rows)
        sources.append(SourceRecord(role=role, source=source, rows=len(rows), sha256=sha256))
    return documents, sources


def _read(given: str, role: TextRole, options: CorpusOptions) -> tuple[Sequence[Row], str]:
    """The rows of a source, and what messages call it."""
    path, name = Path(given), given.removeprefix("task:")
    if name != given:
        specs = load_registry(options.include_path).resolve([name])
        if len(specs) > 1:
            raise OptionError(f"--{role} {given} is {len(specs)} tasks; name one of them")
        if role == "unseen":
            raise OptionError(f"--unseen {given}: a task's rows are what is evaluated; use a file")
        # A task is about forgotten or about retained text, and unlearning takes it only as that.
        if role not in (specs[0].about, "auxiliary", "data"):
            raise OptionError(
                f"--{role} {given}: this task measures what is to "
                f"{'stay' if specs[0].about == 'retain' else 'go'}; use it with --{specs[0].about}"
            )
        root = options.data_dir or os.environ.get("UNLEARNBENCH_DATA")
        where = DataOptions(Path(root) if root else None, options.allow_data_drift)
        split = specs[0].own_split
        return load_splits(specs[0], where)[split].rows, f"{name}: {split}"
    if path.suffix != ".txt":
        return read_rows(path), name
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {one_line(error)}") from None
    return ([{options.text_field: text}] if text.strip() else []), name


def _documents(rows: Sequence[Row], label: str, options: CorpusOptions) -> list[TextDocument]:
    """A row whose text is blank teaches nothing; published sets (MUSE-News) have some."""
    texts = [_field(row, options.text_field) for row in rows]
    kept = [i for i, text in enumerate(texts) if not isinstance(text, str) or text.strip()]
    if not kept:
        raise DataError(f"{label}: every text is blank; there is nothing to learn from")
    if blank := len(rows) - len(kept):
        log.warning("%s: %d of %d texts are blank and left out", label, blank, len(rows))
    return [_document(rows[i], f"{label}/{i}", options) for i in kept]


def _document(row: Row, where: str, options: CorpusOptions) -> TextDocument:
    names = options.question_field, options.answer_field, options.text_field, "prompt", "gt"
    found = [_field(row, name) for name in names]
    question, answer, text, begin, end = (
        value if isinstance(value, str) and value.strip() else None for value in found
    )
    if question and answer:
        return TextDocument(question, where, answer)
    if text:
        return TextDocument(text, where)
    if begin and end:
        # MUSE-News cuts between two words and keeps the blank on neither side.
        apart = begin[-1].isspace() or end[0].isspace()
        return TextDocument(begin + ("" if apart else " ") + end, where)
    raise DataError(
        f"{where}: no text: a row needs a field {names[2]!r}, or {names[0]!r} and {names[1]!r}, or "
        f"'prompt' and 'gt', that is not empty; this one has {one_line(sorted(row), 100)}. "
        "--text-field, --question-field and --answer-field take other names"
    )


def _field(row: Row, name: str) -> object:
    """What a row has under a name; ``a.b`` is ``b`` within ``a`` where no field is called so."""
    value: object = row
    for key in [name] if name in row else name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


@dataclass(frozen=True)
class Encoder:
    """Turns documents into sequences of at most ``max_length`` tokens, ids below ``rows``."""

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    rows: int
    qa_loss: str = "answer"
    blank_in_answer: bool = False
    copy: Callable[[Path], None] | None = None
    """Puts the tokenizer's own files into a folder."""

    def save(self, folder: Path) -> None:
        """Put the tokenizer into ``folder``."""
        (self.copy or self.tokenizer.save_pretrained)(folder)

    def encode(self, documents: Sequence[TextDocument], role: str) -> tuple[Example, ...]:
        """All sequences of some documents. A text longer than ``max_length`` is cut into pieces of
        that length, all kept; a question is cut from its left. How many were cut is said. Raises
        DataError where a text has fewer than two tokens, or an answer alone is too long.
        """
        parts = [self.encode_one(document) for document in documents]
        examples = tuple(
            replace(example, document=number)
            for number, part in enumerate(parts)
            for example in part
        )
        if long := sum(len(part) > 1 for part in parts):
            says = (
                "%s: %d of %d texts are longer than %d tokens and were cut into pieces, %d in all"
            )
            log.warning(says, role, long, len(parts), self.max_length, len(examples))
        return examples

    def answer(self, example: Example, other: str | Sequence[int]) -> Example:
        """``example`` with another answer after its first ``prompt`` tokens, as text or tokens; one
        that goes on a text is cut at ``max_length``.
        """
        where = "another answer"
        if not example.is_qa:
            told = self._tokens(other, False, where) if isinstance(other, str) else other
            ids = (*example.ids[: example.prompt], *told)[: self.max_length]
            hidden = (IGNORED,) * example.prompt
            return replace(example, ids=ids, labels=(*hidden, *ids[len(hidden) :]))
        if isinstance(other, str):
            other = self._tokens(self._round(other), False, where)
        return self._joined(example.ids[: example.prompt], other, example.begin, where)

    def encode_one(self, document: TextDocument) -> list[Example]:
        """The sequences of one document. A pair is in the words of the KnowMem prompts. Its answer
        is encoded by itself, because there the prompt ends before it and no token spans both.
        """
        where, size = document.where, self.max_length
        if document.answer is not None:
            question = self.question(document)
            asked = self._tokens(question, True, where)
            begin = len(asked) - len(self._tokens(question, False, where))
            told = self._tokens(self.told(document), False, where)
            return [self._joined(asked, told, begin, where)]
        ids = self._tokens(document.text, True, where)
        if len(ids) < 2:
            raise DataError(f"{where}: a text of {len(ids)} tokens teaches nothing")
        pieces = [tuple(ids[at : at + size]) for at in range(0, len(ids), size)]
        if len(pieces) > 1 and len(pieces[-1]) < 2:  # its one token would never be predicted
            pieces.pop()
        return [Example(piece, piece) for piece in pieces]

    def offsets(self, document: TextDocument) -> list[list[tuple[int, int] | None]]:
        """For each sequence of ``encode_one``, which characters of the text, or of the answer, each
        token stands for; None in a question. Raises OptionError where the tokenizer does not say.
        """
        pair, blank = document.answer is not None, int(self.blank_in_answer)
        text = self.told(document) if pair else document.text
        _, found = self.located(text, not pair, document.where)
        (*_, last), size = self.encode_one(document), self.max_length
        if pair:
            told = [(first - blank, end - blank) for first, end in found]
            return [[*[None] * (len(last.ids) - len(told)), *told]]
        pieces: list[list[tuple[int, int] | None]]
        pieces = [list(found[at : at + size]) for at in range(0, len(found), size)]
        return pieces if len(pieces[-1]) == len(last.ids) else pieces[:-1]

    def question(self, document: TextDocument) -> str:
        """What stands before a pair's answer."""
        return f"Question: {document.text}\nAnswer:" + " " * (not self.blank_in_answer)

    def told(self, document: TextDocument) -> str:
        """A pair's answer with what stands round it."""
        return self._round(document.answer or "")

    def located(
        self, text: str, special: bool, where: str
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Tokens, and which characters each stands for. Raises OptionError as ``offsets``."""
        if not getattr(self.tokenizer, "is_fast", False):
            raise OptionError("this tokenizer does not say which characters a token stands for")
        found = self.tokenizer(
            text, add_special_tokens=special, verbose=False, return_offsets_mapping=True
        )
        return self._checked(found["input_ids"], where), list(found["offset_mapping"])

    def _round(self, answer: str) -> str:
        return " " * self.blank_in_answer + f"{answer}\n\n"

    def _tokens(self, text: str, special: bool, where: str) -> list[int]:
        found = self.tokenizer(text, add_special_tokens=special, verbose=False)
        return self._checked(found["input_ids"], where)

    def _checked(self, found: Sequence[int], where: str) -> list[int]:
        ids = list(found)
        if ids and max(ids) >= self.rows:
            raise ModelOutputError(
                f"{where}: token {max(ids)} is beyond the model's {self.rows} rows"
            )
        return ids

    def _joined(self, asked: Sequence[int], told: Sequence[int], begin: int, where: str) -> Example:
        """A question and its answer; a question that is too long is cut from its left."""
        room = self.max_length - len(told)
        if room < 1:
            raise DataError(
                f"{where}: its answer of {len(told)} tokens does not fit {self.max_length}; use a "
                "larger --max-length"
            )
        begin, asked = max(0, begin - max(0, len(asked) - room)), asked[-room:]
        hidden = asked if self.qa_loss == "all" else (IGNORED,) * len(asked)
        ids, labels = (*asked, *told), (*hidden, *told)
        return Example(ids, labels, is_qa=True, begin=begin, prompt=len(asked))
