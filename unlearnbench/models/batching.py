"""Batches of similar length, that shrink when memory runs out without losing what is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

__all__ = ["Batches", "is_out_of_memory"]

T = TypeVar("T")


class Batches(Generic[T]):
    """Hands out pairs (item, token ids) longest first, so that the worst batch comes first.

    is_done: tells items that need no answer. They keep their places, so that the other batches
    are what they would be without them; a batch that holds nothing else is left out.
    """

    def __init__(
        self,
        items: Sequence[tuple[T, list[int]]],
        rows: int,
        is_done: Callable[[T], bool] = lambda _: False,
    ) -> None:
        # A stable order: the same requests always form the same batches.
        self._waiting = sorted(items, key=lambda item: -len(item[1]))
        self._rows = rows
        self._is_done = is_done

    def next(self) -> list[tuple[T, list[int]]]:
        """The next batch; empty when all is done."""
        while self._waiting:
            batch, self._waiting = self._waiting[: self._rows], self._waiting[self._rows :]
            if not all(self._is_done(item) for item, _ in batch):
                return batch
        return []

    def halve(self, failed: Sequence[tuple[T, list[int]]]) -> None:
        """Put a batch that did not fit back and use half its size from here on."""
        self._waiting = [*failed, *self._waiting]
        self._rows = max(1, len(failed) // 2)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch failed to allocate: an exception class on CUDA, a message on CPU."""
    import torch

    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        "can't allocate memory" in text or "not enough memory" in text
    )
