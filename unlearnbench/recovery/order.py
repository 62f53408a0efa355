"""The order in which a task's samples are drawn where a gate stops as soon as it is decided."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from unlearnbench.results import LikelihoodRecord, SampleRecord


@dataclass(frozen=True)
class Order:
    """A task's samples in a seeded random order, the same for every checkpoint and condition."""

    draws: tuple[tuple[str, ...], ...]
    """What each draw asks: a sample's id; of a membership task a text of each group."""
    rest: tuple[str, ...] = ()
    """Texts of the larger group that have no partner: asked when all is."""

    def __len__(self) -> int:
        return len(self.draws)

    def first(self, n: int) -> set[str]:
        """The ids of the first ``n`` draws; from the last one on all there are."""
        ids = {name for draw in self.draws[:n] for name in draw}
        return ids | set(self.rest) if n >= len(self) else ids


def draw_order(task: str, groups: Sequence[Sequence[str]], seed: int) -> Order:
    """The order of the samples of one group, or of pairs of two (the k-th of both), by the hashes
    of their ids: whatever else is asked, and wherever, it is the same.
    """

    def key(name: str) -> bytes:
        return hashlib.sha256(f"{seed}\n{task}\n{name}".encode()).digest()

    drawn = [sorted(group, key=key) for group in groups]
    n = min(map(len, drawn))
    draws = tuple(zip(*(group[:n] for group in drawn), strict=True))
    return Order(draws, tuple(name for group in drawn for name in group[n:]))


def order_of(task: str, records: Sequence[SampleRecord], pairs: bool, seed: int) -> Order:
    """The order of a task's samples, by the records of a run that has them all. ``pairs``: they are
    of two groups of texts, told apart by their splits.
    """
    groups: dict[str, list[str]] = {}
    for record in records:
        split = record.split if pairs and isinstance(record, LikelihoodRecord) else ""
        groups.setdefault(split, []).append(record.id)
    return draw_order(task, [*groups.values()], seed)
