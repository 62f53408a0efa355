"""What a model is: anything that continues prompts, scores texts and says what it is."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Protocol, runtime_checkable

from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import Checkpoint, Condition


@runtime_checkable
class Model(Protocol):
    """A checkpoint under one condition that answers requests.

    Answers may come in any order, each with its request's id, exactly one a request. What cannot
    be answered raises; an answer is never made up.

    ``skip`` names requests that an interrupted run has answered already: they get no answer, but
    they still take their places in batches, so that the other answers are what they would have
    been without the interruption, to the last bit.
    """

    @property
    def checkpoint(self) -> Checkpoint:
        """Which weights and tokenizer."""

    @property
    def condition(self) -> Condition:
        """How the weights are stored, proven to be in force."""

    @property
    def device(self) -> str:
        """Kind of device, as ``cpu`` or ``cuda``."""

    @property
    def dtype(self) -> str:
        """Compute dtype, as ``fp32``."""

    @property
    def config(self) -> dict[str, object]:
        """The content of ``config.json``; empty for a model without one."""

    def truncate(self, text: str, max_tokens: int) -> str:
        """Cut ``text`` to its first ``max_tokens`` token ids, special tokens counted."""

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        """Continue prompts.

        Raises:
            ModelOutputError: non-finite logits, or a prompt that does not fit the context.
        """

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        """Give per-token log-probabilities of whole texts.

        Raises:
            ModelOutputError: as for ``generate``, or a text without a second token.
        """


class Delegate:
    """What ``Model`` asks for beside answers, taken from ``own``: a checkpoint that this process
    has loaded, where another engine or other processes answer.
    """

    def __init__(self, own: Model) -> None:
        self.own = own
        self.checkpoint, self.condition = own.checkpoint, own.condition
        self.device, self.dtype, self.config = own.device, own.dtype, own.config

    def truncate(self, text: str, max_tokens: int) -> str:
        """Cut ``text`` as ``own`` does."""
        return self.own.truncate(text, max_tokens)
