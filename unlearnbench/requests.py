"""What a model is asked, and what it answers. Two kinds, told apart by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens when decoding is not greedy.

    temperature: softmax temperature, above 0. top_k: keep the k likeliest tokens, 0 keeps all.
    seed: together with the request's id it fixes every draw, whatever the batch.
    """

    temperature: float
    top_k: int
    seed: int


@dataclass(frozen=True)
class Generate:
    """Continue ``prompt`` by at most ``max_new_tokens`` tokens; greedy unless ``sampling`` is set.

    The answer's text ends before the first occurrence of any of ``stop``.
    """

    id: str
    prompt: str
    max_new_tokens: int
    stop: tuple[str, ...] = ()
    sampling: Sampling | None = None
    tokens: tuple[int, ...] = ()
    """The prompt's token ids, where no text has them."""
    drafts: tuple[str, ...] = ()
    """What the answer may be, the likeliest first. It moves how fast an answer comes, not its
    text."""


@dataclass(frozen=True)
class Generated:
    """The continuation of the request ``id``; ``text`` may be empty, ``n_tokens`` counts ids."""

    id: str
    text: str
    n_tokens: int
    passes: int = 0
    """Forward passes in which it had a token, where drafts were verified; else 0."""
    drafted: int = 0
    """Tokens of drafts, and of what was looked up behind them, that were run."""
    accepted: int = 0
    """Those of them that are the answer's."""


@dataclass(frozen=True)
class Score:
    """Give the log-probability of every token of ``text`` after its first, or, where there is a
    ``prompt``, of every token of ``prompt + text`` from the first that the prompt alone has not.
    """

    id: str
    text: str
    prompt: str = ""
    end: bool = False
    """Whether the tokenizer's end token, behind the text, is scored as well."""
    gradient: bool = False
    """Whether the norm of the loss's gradient by the weights is asked for too."""


@dataclass(frozen=True)
class Scored:
    """Per-token figures of one text, natural logarithms, float64, each of shape (n,).

    n counts the tokens after the first. ``logprobs``: log p(x_t | x_<t). ``mean`` and ``std``:
    expectation and standard deviation of log p(z | x_<t) over the vocabulary, z ~ p (Min-K%++).
    Behind a prompt n counts the tokens that were asked for.
    """

    id: str
    logprobs: NDArray[np.float64]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    matches: NDArray[np.bool_] | None = None
    """Of tokens behind a prompt: whether x_t is the likeliest at its place."""
    gradient: float | None = None
    """The mean over the parameters of the 2-norm of the mean negative log-probability's gradient;
    None where it was not asked for, or the weights have none."""


GRADNORM = "gradnorm"
"""The attack that reads ``Scored.gradient``."""
Request: TypeAlias = Generate | Score
Answer: TypeAlias = Generated | Scored
