"""A forget text with stand-ins for its names, and which of its positions stands for which."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import Example, Translation
from unlearnbench.training.alternatives import listed
from unlearnbench.training.corpus import Encoder, TextDocument
from unlearnbench.training.names import Span, whole_words

log = logging.getLogger("unlearnbench")

Anchors = Mapping[str, str]
"""What stands in the place of each name."""


@dataclass(frozen=True)
class _Side:
    """A text beside its translation: the characters of each token, and where the names stand."""

    tokens: Sequence[Span]
    ids: Sequence[int]
    """Of the translation."""
    theirs: Sequence[Span]
    """The characters of the translation that its tokens stand for."""
    names: Sequence[tuple[Span, Span, str]]
    """A name's characters, those of what stands for it, and the name."""

    def moved(self, end: int) -> int | None:
        """Where a token that ends there ends in the translation; None inside a name."""
        shift = 0
        for (begin, stop), (_, there), _ in self.names:
            if begin < end < stop:
                return None
            if stop <= end:
                shift = there - stop
        return end + shift

    def places(self) -> list[int | None]:
        """For each token, the one of the translation after which as much is said: that which ends
        where it does. Of several that end at one character the last, or all if they are as many.
        """
        found: list[int | None] = [None] * len(self.tokens)
        ours, theirs = _by_end(self.tokens), _by_end(self.theirs)
        stops = {stop for (_, stop), _, _ in self.names}
        for end, places in ours.items():
            moved = self.moved(end)
            there = [] if moved is None else theirs.get(moved, [])
            if end and (len(there) != len(places) or end in stops):  # at 0 are special tokens
                places, there = places[-1:], there[-1:]
            for place, at in zip(places, there):  # noqa: B905 - nothing where none is there
                found[place] = at
        return found


def _by_end(tokens: Sequence[Span]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place, (_, end) in enumerate(tokens):
        found.setdefault(end, []).append(place)
    return found


def translated(
    anchors: Anchors,
    documents: Sequence[TextDocument],
    examples: Sequence[Example],
    encoder: Encoder,
) -> tuple[Example, ...]:
    """``examples``, the sequences of ``documents``, each with its translation. Raises OptionError
    where no anchor is in any of them.
    """
    pattern, rest, made, count = whole_words(anchors), iter(examples), [], 0
    for document in documents:
        for sides in _sides(document, pattern, anchors, encoder):
            example = next(rest)
            count += sum(len(side.names) for side in sides)
            made.append(replace(example, translation=_join(example, sides, encoder.max_length)))
    shown = listed(f"{name} -> {other}" for name, other in anchors.items())
    says = "anchors: %d names, found %d times in %d sequences: %s"
    log.warning(says, len(anchors), count, len(examples), shown)
    if not count:
        raise OptionError("--anchors: none of its names is in the forget texts, as whole words")
    return tuple(made)


def _sides(
    document: TextDocument, pattern: re.Pattern[str], anchors: Anchors, encoder: Encoder
) -> Iterator[list[_Side]]:
    """Of each sequence of a document: a question and its answer, or a piece of its text."""

    def side(text: str, tokens: Sequence[Span], special: bool) -> _Side:
        names, said, last = [], "", 0
        for found in pattern.finditer(text):
            name = " ".join(found[0].split())
            said += text[last : found.start()]
            names.append((found.span(), (len(said), len(said) + len(anchors[name])), name))
            said, last = said + anchors[name], found.end()
        ids, theirs = encoder.located(said + text[last:], special, document.where)
        return _Side(tokens, ids, theirs, names)

    if document.answer is not None:
        parts = (encoder.question(document), True), (encoder.told(document), False)
        (length,) = (len(example.ids) for example in encoder.encode_one(document))
        asked, told = (side(t, encoder.located(t, s, document.where)[1], s) for t, s in parts)
        kept = asked.tokens[len(asked.tokens) + len(told.tokens) - length :]
        yield [replace(asked, tokens=kept), told]
        return
    begin = 0
    for piece in encoder.offsets(document):
        tokens = [token or (0, 0) for token in piece]
        end = max(begin, *(stop for _, stop in tokens))
        own = [(a - begin, b - begin) if b > a else (0, 0) for a, b in tokens]
        yield [side(document.text[begin:end], own, begin == 0)]
        begin = end


def _join(example: Example, sides: Sequence[_Side], most: int) -> Translation:
    """Sides one after another; one that is too long is cut, a pair's from its left."""
    ids = [token for side in sides for token in side.ids]
    starts = accumulate((len(side.ids) for side in sides[:-1]), initial=0)
    at: list[int | None] = []
    repeated: list[bool] = []
    seen: dict[str, tuple[int, int]] = {}
    for start, side in zip(starts, sides, strict=True):
        first = len(at)
        at += [None if place is None else start + place for place in side.places()]
        repeats = [False] * len(side.tokens)
        for (begin, stop), (there, _), name in side.names:
            inside = [n for n, (a, b) in enumerate(side.tokens) if a < stop and b > begin]
            if name in seen:
                for place in inside:
                    repeats[place] = True
            elif inside:
                pairs = zip(side.ids, side.theirs, strict=True)
                token = next(token for token, (_, end) in pairs if end > there)
                seen[name] = (first + inside[-1] + 1, token)
        repeated += repeats
    cut = max(0, len(ids) - most) if example.is_qa else 0
    kept = ids[cut : cut + most]
    places = [None if p is None or not cut <= p < cut + most else p - cut for p in at]
    return Translation(tuple(kept), tuple(places), tuple(repeated), tuple(seen.values()))
