"""``--alternative``: other answers beside each forget text, for the losses that read them.

They come from a file, from the retain set, from a list of refusals, are the target's generic words
or written by it (``own.py``), and never from an evaluation's answers. A text's second half is the
answer to its first.
"""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.origin import SourceRecord
from unlearnbench.errors import DataError, OptionError, one_line
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import PACKAGE_DATA, DataOptions, load_samples, read_rows, rows_sha256
from unlearnbench.tasks.spec import Row, place_of
from unlearnbench.training.corpus import Encoder, TextDocument, TextRole
from unlearnbench.training.options import CorpusOptions

if TYPE_CHECKING:
    from unlearnbench.methods.base import TrainingContext

log = logging.getLogger("unlearnbench")

GENERIC = "generic"
OWN = "own"
WORDS = ("retain", GENERIC, "refuse", OWN)
DRAWN = 5  # that the target writes beside each forget text
_DRAWN = 4  # so many times those that are learned each time a text comes are drawn for it
_STRENGTH = 5.0  # alpha of generic words, as in Who's Harry Potter

REFUSALS = (
    "I do not know.",
    "I don't know the answer to that.",
    "I have no information about this.",
    "That is not something I can answer.",
    "I am not sure.",
    "I'm afraid I can't say.",
    "I have not heard of that.",
    "I cannot tell you anything about it.",
    "My knowledge does not cover this.",
    "I was never told.",
    "This is unknown to me.",
    "I have no idea.",
    "I would only be guessing.",
    "I can't help with that question.",
    "There is nothing I can say on this subject.",
    "I lack the facts to answer.",
    "That is beyond what I know.",
    "I have no record of it.",
    "Sorry, I do not have an answer.",
    "I could not find out.",
)

Documents = Mapping[TextRole, Sequence[TextDocument]]


def attach(
    given: str,
    documents: Documents,
    encoder: Encoder,
    corpus: CorpusOptions,
    seed: int,
    beside: int = 1,
) -> tuple[tuple[Example, ...], list[SourceRecord]]:
    """The forget set with other answers beside each row (of ``generic``: without, see
    ``with_generic``), and what identifies a file of them. documents: of ``forget`` and, where they
    are read, ``retain``. beside: how many are learned each time. Raises DataError where a row has
    none, or one is a true answer of its own or an evaluation's; OptionError where the retain set
    has none of the kind.
    """
    rows = [(d, _halved(e)) for d in documents["forget"] for e in encoder.encode_one(d)]
    sources: list[SourceRecord] = []
    if given in (GENERIC, OWN):
        return tuple(row for _, row in rows), sources
    texts: dict[int, tuple[str, ...]]
    if given == "refuse":
        texts = {id(document): REFUSALS for document, _ in rows}
    elif given == "retain":
        return tuple(
            _from_retain(rows, documents["retain"], encoder, corpus, seed, _DRAWN * beside)
        ), sources
    else:
        texts, found = _from_file(Path(given), documents["forget"], corpus)
        sources.append(found)
    blank = "" if encoder.blank_in_answer else " "
    made = []
    for document, row in rows:
        told = [text if row.is_qa else blank + text for text in texts[id(document)]]
        made.append(replace(row, alternatives=tuple(encoder.answer(row, t) for t in told)))
    return tuple(made), sources


def _halved(example: Example) -> Example:
    """A text as a question, its first half, and the answer to it; a pair as it is."""
    if example.is_qa:
        return example
    at = (len(example.ids) + 1) // 2
    return replace(example, prompt=at, labels=(IGNORED,) * at + example.ids[at:])


def _from_retain(
    rows: Sequence[tuple[TextDocument, Example]],
    retain: Sequence[TextDocument],
    encoder: Encoder,
    corpus: CorpusOptions,
    seed: int,
    drawn_each: int,
) -> Iterator[Example]:
    """The answers of other questions, or the second halves of other texts."""
    pairs = [d for d in retain if d.answer is not None]
    texts = [_halved(e) for d in retain if d.answer is None for e in encoder.encode_one(d)]
    if any(row.is_qa for _, row in rows):
        require_no_answers([(d.where, d.answer or "") for d in pairs], corpus)
    rng = random.Random(seed)  # noqa: S311 - a seeded generator is the point
    for document, row in rows:
        own, kind = row.ids[row.prompt :], "pairs" if row.is_qa else "texts"
        found: list[str | tuple[int, ...]]
        if row.is_qa:
            answers = [d.answer for d in pairs if d.answer is not None]
            found = [a for a in answers if plain(a) != plain(document.answer or "")]
        else:
            ends = [e.ids[e.prompt :][: len(own)] for e in texts]
            found = [end for end in ends if end != own]
        if not found:
            raise OptionError(
                f"--alternative retain: the forget set has {kind} and the retain set has none"
            )
        drawn = rng.sample(found, min(drawn_each, len(found)))
        yield replace(row, alternatives=tuple(encoder.answer(row, other) for other in drawn))


def _from_file(
    path: Path, forget: Sequence[TextDocument], corpus: CorpusOptions
) -> tuple[dict[int, tuple[str, ...]], SourceRecord]:
    """The alternatives of each document, by its id: rows that repeat its question or its text."""
    if str(path).startswith("task:"):
        raise OptionError(f"--alternative {path}: a task's rows are what is evaluated; use a file")
    rows = read_rows(path)
    known: dict[str, tuple[str, ...]] = {}
    answers: list[tuple[str, str]] = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: row {number}"
        key, told = _row(row, where, corpus)
        known[key] = known.get(key, ()) + told
        answers += [(where, text) for text in told]
    missing = [d.where for d in forget if plain(d.text) not in known]
    if missing:
        raise DataError(
            f"{path} has no row for {len(missing)} of {len(forget)} forget texts, the first is "
            f"{missing[0]}; a row repeats the question or the text"
        )
    own = [d for d in forget if d.answer and plain(d.answer) in map(plain, known[plain(d.text)])]
    if own:
        raise DataError(
            f"{path}: an alternative is the true answer of {listed(d.where for d in own)}"
        )
    require_no_answers(answers, corpus)
    record = SourceRecord(
        role="alternatives", source=one_line(path), rows=len(rows), sha256=rows_sha256(rows)
    )
    return {id(d): known[plain(d.text)] for d in forget}, record


def _row(row: Row, where: str, corpus: CorpusOptions) -> tuple[str, tuple[str, ...]]:
    """What a row of a file of alternatives is for, and its texts."""
    asked = row.get(corpus.question_field) or row.get(corpus.text_field)
    told = row.get("alternative")
    told = [told] if isinstance(told, str) else told
    fine = isinstance(told, list) and told and all(isinstance(t, str) and t.strip() for t in told)
    if not isinstance(asked, str) or not fine:
        raise DataError(
            f"{where}: it needs {corpus.question_field!r} or {corpus.text_field!r}, as the forget "
            "set has it, and 'alternative', a text or a list of texts"
        )
    return plain(asked), tuple(told)  # type: ignore[arg-type]


def answers_of_tasks(corpus: CorpusOptions) -> dict[str, str]:
    """The task and row by what registered tasks compare answers with, ``plain``: of every task
    whose rows are at hand.
    """
    given = corpus.data_dir or os.environ.get("UNLEARNBENCH_DATA")
    where = DataOptions(Path(given) if given else None, allow_drift=True)
    folders = [folder for folder in (where.data_dir, PACKAGE_DATA) if folder is not None]
    answers: dict[str, str] = {}
    for name, spec in load_registry(corpus.include_path).tasks.items():
        roots = [folder / spec.dataset_path for folder in folders]
        root = next(filter(Path.is_dir, roots), None)  # where its rows are read from
        files = [place_of(spec, split) for split in spec.used_splits]
        if root and all(any((root / subset).glob(f"{there}.*")) for subset, there in files):
            samples = load_samples(spec, where).samples
            answers |= {plain(s.target): f"{name}: {s.id}" for s in samples if s.target.strip()}
    return answers


def require_no_answers(given: Sequence[tuple[str, str]], corpus: CorpusOptions) -> None:
    """Raise DataError, which names rows, where a text of (row, text) is an evaluation's answer."""
    answers = answers_of_tasks(corpus)
    found = [(row, answers[plain(text)]) for row, text in given if plain(text) in answers]
    if found:
        raise DataError(
            "--alternative: an evaluation's answers cannot be learned: "
            + listed(f"{row} is that of {answer}" for row, answer in found)
        )


def with_generic(context: TrainingContext) -> tuple[Example, ...]:
    """Beside each row the words that the target would use if it knew nothing special: its labels in
    Who's Harry Potter's fine-tuning, from the first token of the answer on.
    """
    from unlearnbench.methods.whole.whp_ft import generic_labels

    models = context.copy_of_target(), context.reinforce()
    labelled = context.relabel(models, lambda b, r, y: generic_labels(b, r, y, _STRENGTH))
    made = []
    for example, other in zip(context.forget, labelled, strict=True):
        told = [t if t != IGNORED else i for t, i in zip(other.labels, example.ids, strict=True)]
        answer = context.answer(example, told[example.prompt :])
        made.append(replace(example, alternatives=(answer,)))
    if same := sum(e.alternatives[0].ids == e.ids for e in made):
        log.warning("generic words are the true ones in %d of %d rows", same, len(made))
    return tuple(made)


def plain(text: str) -> str:
    """A text as it is compared: blanks and large letters make no difference."""
    return " ".join(text.split()).casefold()


def listed(names: Iterator[str]) -> str:
    """The first three, and how many more."""
    found = [one_line(name, 400) for name in names]
    return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
