"""How much of an answer a model knows token by token, from one teacher-forced pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unlearnbench.errors import MetricError


@dataclass(frozen=True)
class Memorized:
    """Of an answer of ``tokens`` tokens, its end token not counted."""

    tokens: int
    matched: int
    """Those that are the likeliest at their place."""
    known_from: int
    """The first place from which on all are, and the last place at the most."""

    def __post_init__(self) -> None:
        if not 0 <= self.known_from < self.tokens or not 0 <= self.matched <= self.tokens:
            raise MetricError(
                f"an answer of {self.tokens} tokens with {self.matched} that match, from "
                f"{self.known_from} on, is none"
            )

    @property
    def exact(self) -> float:
        """Exact memorization: matched / tokens (Tirumala et al. 2022, arXiv 2205.10770)."""
        return self.matched / self.tokens

    @property
    def strength(self) -> float:
        """Extraction strength: 1 - known_from / tokens (Carlini et al. 2021, arXiv 2012.07805; for
        unlearning Wang et al. 2025, arXiv 2406.09179). Never 0, see ``on_floor``.
        """
        return 1 - self.known_from / self.tokens

    @property
    def on_floor(self) -> bool:
        """Whether the strength is 1 / tokens, as open-unlearning's is where nothing is known."""
        return self.known_from == self.tokens - 1


def memorized(matches: Sequence[bool]) -> Memorized:
    """matches: for each token of an answer, whether it is the likeliest at its place.

    Raises MetricError for no token.

    Example:
        >>> memorized([True, False, True, True]).strength
        0.5
    """
    known_from = len(matches) - 1
    while known_from > 0 and all(matches[known_from - 1 :]):
        known_from -= 1
    return Memorized(len(matches), sum(map(bool, matches)), known_from)
