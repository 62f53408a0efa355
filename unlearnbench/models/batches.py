"""Batches of similar length under a budget that grows while they fit, and shrinks when memory runs
out without losing what is done.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

_OUT_OF_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "_STATUS_ALLOC_FAILED",  # cuBLAS, cuDNN, cuSOLVER
)


class Limit(Protocol):
    """How much one batch may hold."""

    def fits(self, lengths: Sequence[int]) -> bool:
        """Whether texts of these lengths, longest first, may stand in one batch."""

    def grow(self) -> None:
        """A batch was done."""

    def shrink(self, lengths: Sequence[int]) -> None:
        """A batch of these lengths ran out of memory."""


@dataclass
class Rows:
    """So many texts, as asked for; only memory changes that."""

    rows: int

    def fits(self, lengths: Sequence[int]) -> bool:
        """See ``Limit``."""
        return len(lengths) <= self.rows

    def grow(self) -> None:
        """It stays as asked for."""

    def shrink(self, lengths: Sequence[int]) -> None:
        """See ``Limit``."""
        self.rows = max(1, len(lengths) // 2)


def padded(lengths: Sequence[int]) -> int:
    """Tokens of a batch in which every text is as long as the longest."""
    return max(lengths, default=0) * len(lengths)


@dataclass
class Budget:
    """Tokens of one batch: ``tokens`` at first, twice as many after each batch that fitted, up to
    ``most``. A batch that did not fit halves it, for good. ``cost``: the tokens that texts of given
    lengths take in one batch. rows: texts of one batch, unbounded until memory runs out.

    It follows from the batches alone, so an interrupted run forms the same ones again wherever
    memory suffices for the first.
    """

    tokens: int
    most: int
    cost: Callable[[Sequence[int]], int] = sum
    rows: int = 2**31

    def fits(self, lengths: Sequence[int]) -> bool:
        """See ``Limit``."""
        return len(lengths) <= self.rows and self.cost(lengths) <= self.tokens

    def grow(self) -> None:
        """See ``Limit``."""
        self.tokens = min(self.most, 2 * self.tokens)

    def shrink(self, lengths: Sequence[int]) -> None:
        """See ``Limit``."""
        self.tokens = self.most = max(1, self.cost(lengths) // 2)
        self.rows = max(1, len(lengths) // 2)


class Batches(Generic[T]):
    """Hands out pairs (item, token ids) longest first, so that the worst batch comes first.

    A text that is over the limit by itself stands alone. is_done: tells items that need no answer.
    They keep their places, so that the other batches are what they would be without them; a batch
    that holds nothing else is left out.
    """

    def __init__(
        self,
        items: Sequence[tuple[T, list[int]]],
        limit: Limit,
        is_done: Callable[[T], bool] = lambda _: False,
    ) -> None:
        # A stable order: the same requests always form the same batches.
        self._waiting = sorted(items, key=lambda item: -len(item[1]))
        self._limit = limit
        self._is_done = is_done

    def next(self) -> list[tuple[T, list[int]]]:
        """The next batch; empty when all is done."""
        while self._waiting:
            batch, self._waiting = self._take()
            if not all(self._is_done(item) for item, _ in batch):
                return batch
            self._limit.grow()  # as it did when this batch was run
        return []

    def _take(self) -> tuple[list[tuple[T, list[int]]], list[tuple[T, list[int]]]]:
        lengths: list[int] = []
        for _, ids in self._waiting:
            if lengths and not self._limit.fits([*lengths, len(ids)]):
                break
            lengths.append(len(ids))
        return self._waiting[: len(lengths)], self._waiting[len(lengths) :]

    def fitted(self) -> None:
        """The last batch is done."""
        self._limit.grow()

    def halve(self, failed: Sequence[tuple[T, list[int]]]) -> None:
        """Put a batch that did not fit back and use half its size from here on."""
        self._waiting = [*failed, *self._waiting]
        self._limit.shrink([len(ids) for _, ids in failed])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether there was too little memory: torch has a class for it in its own allocator on CUDA,
    and messages where CUDA itself, a library of it or the CPU's allocator failed.
    """
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _OUT_OF_MEMORY)


def batch_key(rows: Sequence[list[int]]) -> bytes:
    """Tells batches of token ids apart, their order included."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(len(row).to_bytes(8, "little") + array("q", row).tobytes())
    return digest.digest()
