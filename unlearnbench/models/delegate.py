"""A model that answers through another one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unlearnbench.results import Checkpoint, Condition

if TYPE_CHECKING:
    from unlearnbench.models.base import Model


class Delegate:
    """What ``Model`` asks for beside answers, taken from ``own``: a checkpoint that this process
    has loaded.
    """

    def __init__(self, own: Model) -> None:
        self.own = own

    @property
    def checkpoint(self) -> Checkpoint:
        """See ``Model``."""
        return self.own.checkpoint

    @property
    def condition(self) -> Condition:
        """See ``Model``."""
        return self.own.condition

    @property
    def device(self) -> str:
        """See ``Model``."""
        return self.own.device

    @property
    def dtype(self) -> str:
        """See ``Model``."""
        return self.own.dtype

    @property
    def config(self) -> dict[str, object]:
        """See ``Model``."""
        return self.own.config

    def truncate(self, text: str, max_tokens: int) -> str:
        """See ``Model``."""
        return self.own.truncate(text, max_tokens)
