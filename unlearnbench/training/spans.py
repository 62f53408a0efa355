"""``--spans``: of the forget texts only some tokens are forgotten, and the rest is what stands
before them (selective unlearning, Wang et al. 2024, arXiv 2402.05813). Any forget loss can be taken
so: its labels are IGNORED off the spans. They come from a file, from a rule for names and numbers,
or are the tokens that surprise the model most.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.origin import SourceRecord
from unlearnbench.errors import DataError, OptionError, one_line
from unlearnbench.methods.rows import IGNORED, Example, token_logprobs
from unlearnbench.tasks.rows import read_rows, rows_sha256
from unlearnbench.training.alternatives import listed, plain
from unlearnbench.training.corpus import Encoder, TextDocument
from unlearnbench.training.names import Span, names_of, numbers_of
from unlearnbench.training.options import CorpusOptions

if TYPE_CHECKING:
    from unlearnbench.methods.base import TrainingContext

log = logging.getLogger("unlearnbench")

SURPRISE, ENTITIES = "surprise", "entities"
SHARE = 0.2  # of the tokens, that surprise most


def on_spans(
    given: str,
    documents: Sequence[TextDocument],
    examples: Sequence[Example],
    encoder: Encoder,
    corpus: CorpusOptions,
) -> tuple[tuple[Example, ...], list[SourceRecord]]:
    """``examples``, the sequences of ``documents``, with labels on spans alone, and what identifies
    a file of them; for ``surprise`` see ``most_surprising``. Raises DataError where a row of the
    file is missing or damaged.
    """
    sources: list[SourceRecord] = []
    if given == SURPRISE:
        return tuple(examples), sources
    if given == ENTITIES:
        texts = [_forgotten(document) for document in documents]
        spans = [n + numbers_of(t) for n, t in zip(names_of(texts), texts, strict=True)]
    else:
        spans, found = _from_file(Path(given), documents, corpus)
        sources.append(found)
    masks = [
        [_is_in(token, own, len(_forgotten(document))) for token in piece]
        for document, own in zip(documents, spans, strict=True)
        for piece in encoder.offsets(document)
    ]
    return _only(examples, masks), sources


def most_surprising(context: TrainingContext, share: float | None) -> tuple[Example, ...]:
    """The forget set with labels on the tokens of least probability, this share of all that are
    learned; those that come first where they tie.
    """
    logprobs = context.measure([context.model], context.forget, token_logprobs)
    learned = [
        (logprobs[row][at - 1], row, at)
        for row, example in enumerate(context.forget)
        for at in range(1, len(example.ids))
        if example.labels[at] != IGNORED
    ]
    count = math.ceil((SHARE if share is None else share) * len(learned))
    chosen = {(row, at) for _, row, at in sorted(learned)[:count]}
    masks = [[(r, at) in chosen for at in range(len(e.ids))] for r, e in enumerate(context.forget)]
    return _only(context.forget, masks)


def _only(examples: Sequence[Example], masks: Sequence[Sequence[bool]]) -> tuple[Example, ...]:
    """Labels where a mask is true; what is left is said."""
    made = []
    for example, mask in zip(examples, masks, strict=True):
        pairs = zip(example.labels, mask, strict=True)
        kept = tuple(label if marked else IGNORED for label, marked in pairs)
        made.append(replace(example, labels=kept))
    tokens, whole = sum(e.learned for e in made), sum(e.learned for e in examples)
    some = sum(e.learned > 0 for e in made)
    says = "spans: %d of %d tokens are forgotten, in %d of %d sequences"
    log.warning(says, tokens, whole, some, len(made))
    if not tokens:
        raise OptionError("--spans: no token of the forget set is in a span")
    return tuple(made)


def _forgotten(document: TextDocument) -> str:
    return document.text if document.answer is None else document.answer


def _is_in(token: Span | None, spans: Sequence[Span], length: int) -> bool:
    """Whether a token touches a span. What stands before the first character, and behind the last,
    belongs to a span that reaches there.
    """
    if token is None:
        return False
    first, end = token
    return any(
        (begin == 0 or end > begin) and (stop >= length or first < stop) for begin, stop in spans
    )


def _from_file(
    path: Path, documents: Sequence[TextDocument], corpus: CorpusOptions
) -> tuple[list[list[Span]], SourceRecord]:
    """The spans of each document: rows that repeat its question or its text."""
    if str(path).startswith("task:"):
        raise OptionError(f"--spans {path}: a task's rows are what is evaluated; use a file")
    rows = read_rows(path)
    known: dict[str, list[Span]] = {}
    for number, row in enumerate(rows, 1):
        asked = row.get(corpus.question_field) or row.get(corpus.text_field)
        told = row.get("spans")
        if not isinstance(asked, str) or not isinstance(told, list):
            raise DataError(
                f"{path}: row {number}: it needs {corpus.question_field!r} or "
                f"{corpus.text_field!r}, as the forget set has it, and 'spans', a list of [first "
                "character, the one behind the last]"
            )
        known.setdefault(plain(asked), []).extend(_ranges(told, f"{path}: row {number}"))
    if missing := [d.where for d in documents if plain(d.text) not in known]:
        raise DataError(
            f"{path} has no row for {len(missing)} of {len(documents)} forget texts: "
            f"{listed(iter(missing))}; a row repeats the question or the text"
        )
    for document in documents:
        size = len(_forgotten(document))
        for begin, stop in known[plain(document.text)]:
            if stop > size:
                raise DataError(
                    f"{path}: the span [{begin}, {stop}] of {document.where} is beyond its {size} "
                    "characters"
                )
    sha256 = rows_sha256(rows)
    record = SourceRecord(role="spans", source=one_line(path), rows=len(rows), sha256=sha256)
    return [known[plain(d.text)] for d in documents], record


def _ranges(told: Sequence[object], where: str) -> Iterator[Span]:
    for span in told:
        fine = isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)
        if not fine or not 0 <= span[0] < span[1]:  # type: ignore[index]
            raise DataError(
                f"{where}: the span {one_line(span, 60)} is not [first character, the one behind "
                "the last]"
            )
        yield span[0], span[1]  # type: ignore[index]
