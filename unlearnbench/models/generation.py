"""Greedy or sampled continuation of many prompts: what they share is run once, the rest of them
without padding, and a row that has ended leaves its batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from unlearnbench.models.packed_rows import Packed, Prefix, RowCache, Step, attending

_PACKED_TOKENS = {"cpu": 2048, "cuda": 16_384}


def common_prefix(rows: Sequence[Sequence[int]]) -> int:
    """How many token ids all rows begin with, at least one less than the shortest has: the last
    token of each has to be run for what follows it.

    Example:
        >>> common_prefix([[1, 2, 3, 4], [1, 2, 5]])
        2
    """
    low, high = min(map(list, rows)), max(map(list, rows))
    shared = 0
    while shared < min(len(low), len(high)) and low[shared] == high[shared]:
        shared += 1
    return min(shared, min(map(len, rows)) - 1)


class Choose(Protocol):
    """Picks the next token of each row."""

    def choose(self, logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        """See ``decoding.Chooser``."""


@dataclass(frozen=True)
class Stops:
    """Where a row ends: at an id of ``ends``, which is not kept, once ``found`` says so of the
    tokens so far, or after ``most`` tokens.
    """

    ends: frozenset[int]
    found: Callable[[Sequence[int]], bool]
    most: int


@dataclass
class _Batch:
    """Rows under way. alive: which rows of the batch, in the order of the cache's. lengths: how
    many own tokens each of these has in the cache.
    """

    cache: RowCache
    alive: list[int]
    lengths: list[int]
    tokens: list[list[int]] = field(default_factory=list)


class Continuer:
    """Runs a model whose attention is ordinary (see ``fitting``)."""

    def __init__(self, model: Any, device: str) -> None:
        self.model, self.device = model, device

    def run_prefix(self, ids: Sequence[int]) -> RowCache:
        """Keys and values of the tokens that all rows share; none for no tokens."""
        cache = RowCache()
        if ids:
            cache.phase = Prefix()
            self._forward(cache, ids, range(len(ids)), [0])
        return cache

    def continue_rows(
        self, shared: RowCache, start: int, rows: Sequence[Sequence[int]], how: tuple[Choose, Stops]
    ) -> list[list[int]]:
        """New tokens of each row. start: length of the prefix, without which ``rows`` are given.

        Raises:
            ModelOutputError: see ``Choose``.
        """
        choose, stops = how
        batch = _Batch(shared.begin(), [*range(len(rows))], [*map(len, rows)], [[] for _ in rows])
        logits = torch.cat([*self._run_prompts(batch.cache, start, rows, stops.most)])
        while True:
            chosen = choose.choose(logits, batch.alive)
            chosen = self._leave(batch, chosen, stops)
            if not batch.alive:
                return batch.tokens
            logits = self._step(batch, start, chosen)

    def _run_prompts(
        self, cache: RowCache, start: int, rows: Sequence[Sequence[int]], most: int
    ) -> Iterator[torch.Tensor]:
        """Logits after the last token of each row, (rows, vocabulary), in parts."""
        room = max(map(len, rows)) + most
        for group in _groups([*map(len, rows)], _PACKED_TOKENS[torch.device(self.device).type]):
            ids: list[int] = []
            places: list[int] = []
            parts = []
            for row in group:
                parts.append((row, len(ids), len(ids) + len(rows[row])))
                ids += rows[row]
                places += range(start, start + len(rows[row]))
            cache.phase = Packed(parts, len(rows), room)
            yield self._forward(cache, ids, places, [end - 1 for _, _, end in parts])

    def _leave(self, batch: _Batch, chosen: Sequence[int], stops: Stops) -> list[int]:
        """Keep the tokens; rows that end leave. Returns the tokens of the rows that stay."""
        left = list(chosen)
        for at in reversed(range(len(left))):
            tokens = batch.tokens[batch.alive[at]]
            ended = left[at] in stops.ends
            if not ended:
                tokens.append(left[at])
                ended = len(tokens) >= stops.most or stops.found(tokens)
            if ended:  # the last row takes its place
                batch.cache.drop(at, len(left) - 1)
                for column in (batch.alive, batch.lengths, left):
                    column[at] = column[-1]
                    column.pop()
        return left

    def _step(self, batch: _Batch, start: int, chosen: Sequence[int]) -> torch.Tensor:
        lengths = torch.tensor(batch.lengths, device=self.device)
        places = torch.arange(max(batch.lengths) + 1, device=self.device)
        seen = (places[None] <= lengths[:, None])[:, None, None]
        batch.cache.phase = Step(lengths, seen)
        ids = torch.tensor(chosen, device=self.device)[:, None]
        with attending(self.model.config, batch.cache):
            logits: torch.Tensor = self.model(
                input_ids=ids,
                position_ids=(lengths + start)[:, None],
                past_key_values=batch.cache,
                use_cache=True,
            ).logits
        batch.lengths = [n + 1 for n in batch.lengths]
        return logits[:, -1]

    def _forward(
        self, cache: RowCache, ids: Sequence[int], places: Sequence[int], keep: Sequence[int]
    ) -> torch.Tensor:
        """Logits at the positions ``keep`` of one packed row, (len(keep), vocabulary)."""
        with attending(self.model.config, cache):
            logits: torch.Tensor = self.model(
                input_ids=torch.tensor([list(ids)], device=self.device),
                position_ids=torch.tensor([list(places)], device=self.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=torch.tensor(list(keep), device=self.device),
            ).logits
        return logits[0]


class SharedStart:
    """The token ids that prompts begin with, run when the first of them is."""

    def __init__(self, continuer: Continuer, ids: Sequence[int]) -> None:
        self._continuer, self._ids = continuer, ids
        self._cache: RowCache | None = None

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self._ids)

    def continue_rows(
        self, rows: Sequence[Sequence[int]], choose: Choose, stops: Stops
    ) -> list[list[int]]:
        """New tokens of each row; ``rows`` are whole prompts.

        Raises:
            ModelOutputError: see ``Choose``.
        """
        if self._cache is None:
            self._cache = self._continuer.run_prefix(self._ids)
        own = [row[self.length :] for row in rows]
        return self._continuer.continue_rows(self._cache, self.length, own, (choose, stops))


def _groups(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Neighbouring rows of at most ``most`` tokens together, or a longer one alone."""
    group: list[int] = []
    taken = 0
    for row, length in enumerate(lengths):
        if group and taken + length > most:
            yield group
            group, taken = [], 0
        group.append(row)
        taken += length
    yield group
