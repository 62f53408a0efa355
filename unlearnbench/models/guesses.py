"""What a row's next tokens may be: the draft where the answer follows it, else what stood behind
the same few tokens before, in a draft, the prompt or the answer itself.

Source: prompt lookup, Saxena 2023 (github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Ids: TypeAlias = Sequence[int]

_FREE = 30.0
"""Tokens of a pass that cost together what the pass itself does, in which all weights are read: of
SmolLM2-135M in fp32 on one core a pass took 0.22 s and 0.0075 s for each of its tokens."""
_MOST = 32  # tokens of a guess, but in the prompt's own pass, which reads them at their least cost
_WASTE = 0.02  # of the tokens that were run: guessed nevertheless, to see whether it is of use now
_GRAMS = (3, 2)  # tokens that must have stood there before


@dataclass
class _Rate:
    """How often a further token of a guess was right."""

    right: float
    all: float

    def length(self, least: float) -> int:
        """How far ahead a token is right with a chance of at least ``least``."""
        return int(math.log(least) / math.log(self.right / self.all))

    def learn(self, guessed: int, accepted: int) -> None:
        self.right += accepted
        self.all += accepted + (accepted < guessed)


@dataclass
class _Guessed:
    prompt: Ids
    drafts: Sequence[Ids]
    follows: list[int] = field(default_factory=list)
    """Drafts that begin with all new tokens so far."""
    at: tuple[Ids, int] | None = None
    """Text and place of the next token, where the answer was found in it again."""
    known: int = 0
    """New tokens that were looked at."""
    seen: dict[tuple[int, ...], int] = field(default_factory=dict)
    """Where in ``text`` stands what followed these few tokens last."""
    text: list[int] = field(default_factory=list)
    """Prompt and answer."""


class Guesses:
    """Of the rows of one batch. What it guesses follows from the rows and their drafts alone, so an
    interrupted run forms the same passes again.
    """

    def __init__(
        self, prompts: Sequence[Ids], drafts: Sequence[Sequence[Ids]], widest: int
    ) -> None:
        """widest: the most tokens of a pass, with which logits stand."""
        self._rows = [
            _Guessed(p, d, [*range(len(d))]) for p, d in zip(prompts, drafts, strict=True)
        ]
        self._widest = widest
        # Of drafts that are followed, and of what was found again: chances to begin with.
        self._rates = _Rate(2.4, 3.0), _Rate(1.1, 2.0)
        self._run, self._wasted = sum(map(len, prompts)), 0

    def guess(self, row: int, new: Ids, most: int, rows: int) -> list[int]:
        """At most ``most`` tokens behind ``new``, those that the row has, in a pass of ``rows``."""
        own = self._rows[row]
        self._follow(own, new)
        most = min(most, self._widest // rows - 1, most if not new else _MOST)
        rows = rows if new else len(self._rows)  # a right guess saves a part of a later pass
        if own.follows:
            text, place = own.drafts[own.follows[0]], len(new)
        elif own.at is not None:
            text, place = own.at
        else:
            return []
        # Right, it saves its token's cost and a row's share of a pass; else it costs its own.
        length = self._rates[not own.follows].length(rows / (rows + _FREE))
        if length == 0 and self._wasted < _WASTE * self._run:
            length = 1
        count, left = max(0, min(length, most)), len(text) - place
        if text is own.text:  # what repeats itself goes on so
            return [text[place + n % left] for n in range(count)]
        return [*text[place : place + count]]

    def learn(self, row: int, guessed: Ids, accepted: int) -> None:
        """Of the last guess so many tokens were the model's."""
        self._run += 1 + len(guessed)
        self._wasted += len(guessed) - accepted
        if guessed:
            self._rates[not self._rows[row].follows].learn(len(guessed), accepted)

    def _follow(self, own: _Guessed, new: Ids) -> None:
        """Move on by the tokens that are new since the last guess."""
        fresh = new[own.known :]
        place = own.known
        own.known = len(new)
        if own.follows:
            kept = [n for n in own.follows if [*own.drafts[n][place : len(new)]] == [*fresh]]
            own.follows = [n for n in kept if len(own.drafts[n]) > len(new)]
            if kept:
                return
        self._note(own, new)
        if own.at is not None:
            text, there = own.at[0], own.at[1] + len(fresh)
            own.at = (text, there) if [*text[own.at[1] : there]] == [*fresh] else None
        if own.at is None or own.at[1] >= len(own.at[0]):
            own.at = self._find(own)

    def _note(self, own: _Guessed, new: Ids) -> None:
        """Add to the index what followed what; nothing follows the last token yet."""
        start = len(own.text) or 1
        own.text += new[len(own.text) - len(own.prompt) :] if own.text else [*own.prompt, *new]
        for end in range(start, len(own.text)):
            for count in _GRAMS:
                if end >= count:
                    own.seen[tuple(own.text[end - count : end])] = end

    def _find(self, own: _Guessed) -> tuple[Ids, int] | None:
        for count in _GRAMS:
            last = own.text[-count:]
            for draft in own.drafts:
                for end in range(count, len(draft)):
                    if draft[end - 1] == last[-1] and [*draft[end - count : end]] == last:
                        return draft, end
            if tuple(last) in own.seen:
                return own.text, own.seen[tuple(last)]
        return None
