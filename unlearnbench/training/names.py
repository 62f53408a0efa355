"""Names and numbers of a text, by a rule: what a language model would mark, without one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

Span = tuple[int, int]
"""The first character, and the one behind the last."""

_JOINTS = ("of", "de", "van", "von", "der", "la", "the")
_WORD = r"[^\W\d_][\w'’]*"  # noqa: RUF001 - as texts have it
_NUMBER = re.compile(r"\d(?:[\d.,:/-]*\d)?")
_ANY_WORD = re.compile(_WORD)
_SENTENCE = re.compile(r"(?:^|[.!?:\n\"“”])[\s\"“”]*$")
# What begins sentences, where a text is too short to show it in small letters.
_SMALL = frozenset(
    _ANY_WORD.findall(
        "a an the this that these those he she it they we you i his her its their our your my who "
        "what when where why how which if in on at to of for from with by and but or as so not no "
        "yes there then now after before while during since until under over between both all some "
        "each every one two most many more is are was were be been has have had do does did will "
        "would can could may might should question answer"
    )
)


def names_of(texts: Sequence[str]) -> list[list[Span]]:
    """The names of each text, in order: runs of words with a large first letter (`Ada Lovelace`,
    `University of York`). A sentence's first word is none where the texts have it in small letters
    too, or it is one of the commonest.
    """
    words = (word for text in texts for word in _ANY_WORD.findall(text))
    small = _SMALL | {word for word in words if word[0].islower()}
    return [_names(text, small) for text in texts]


def numbers_of(text: str) -> list[Span]:
    """Numbers, and with them times and the figures of dates."""
    return [found.span() for found in _NUMBER.finditer(text)]


def whole_words(names: Iterable[str]) -> re.Pattern[str]:
    """Finds any of the names as whole words, the longest where several begin."""
    longest = sorted(names, key=lambda name: (-len(name), name))
    each = "|".join(r"\s+".join(map(re.escape, name.split())) for name in longest)
    return re.compile(rf"(?<!\w)(?:{each})(?!\w)")


def _names(text: str, small: frozenset[str] | set[str]) -> list[Span]:
    found: list[Span] = []
    run: list[Span] = []
    for word in [*_ANY_WORD.finditer(text), None]:
        joins = word is not None and run and text[run[-1][1] : word.start()] in (" ", "-")
        if word is not None and joins and (word[0][0].isupper() or word[0] in _JOINTS):
            run.append(word.span())
            continue
        while run and text[run[-1][0]].islower():  # a name does not end in a joint
            run.pop()
        if run:
            found.append((run[0][0], run[-1][1]))
        run = []
        if word is None or not word[0][0].isupper():
            continue
        if _SENTENCE.search(text[max(0, word.start() - 20) : word.start()]):
            is_name = word[0].lower() not in small
        else:
            is_name = word[0] != "I"
        run = [word.span()] if is_name else []
    return found
