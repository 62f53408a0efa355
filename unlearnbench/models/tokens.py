"""Between texts and token ids, with a checkpoint's own tokenizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from unlearnbench.errors import ModelOutputError, one_line
from unlearnbench.requests import Generate, Generated, cut_at_stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class Tokens:
    """Token ids of a model's texts."""

    tokenizer: PreTrainedTokenizerBase

    config: Any
    """The text model's."""

    ends: tuple[int, ...]
    """At these ids texts end."""

    pad: int
    """An id to fill up with."""

    truncate_left: bool = False
    """Cut what exceeds the model's context on the left, behind its special tokens."""

    @property
    def vocabulary(self) -> int:
        """Rows of the model's embedding."""
        return int(self.config.vocab_size)

    def encode(self, text: str) -> list[int]:
        """Token ids with the tokenizer's own special tokens, as it adds them by itself.

        Raises:
            ModelOutputError: the model has no such token.
        """
        ids = list(self.tokenizer(text, add_special_tokens=True)["input_ids"])
        if ids and max(ids) >= self.vocabulary:
            raise ModelOutputError(
                f"token {max(ids)} of {one_line(text, 60)!r} is beyond the model's "
                f"{self.vocabulary} rows"
            )
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        text = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text if isinstance(text, str) else "".join(text)

    def prompt(self, request: Generate) -> list[int]:
        """Token ids of a prompt.

        Raises:
            ModelOutputError: it does not fit, or cannot be continued.
        """
        ids = self.fit(request.id, self.encode(request.prompt), request.max_new_tokens)
        if ids[-1] in self.ends:
            raise ModelOutputError(
                f"{request.id}: the tokenizer ends prompts with an end-of-text token, after "
                "which any model writes something else; set add_eos_token to false"
            )
        return ids

    def fit(self, name: str, ids: list[int], new: int) -> list[int]:
        """The ids, cut where that was asked for.

        Raises:
            ModelOutputError: there are none, or they and ``new`` further ones exceed the context.
        """
        context = getattr(self.config, "max_position_embeddings", None)
        if not ids:
            raise ModelOutputError(f"{name}: the prompt has no tokens")
        if not isinstance(context, int) or len(ids) + new <= context:
            return ids
        special = set(self.tokenizer.all_special_ids)
        kept = next((at for at, token in enumerate(ids) if token not in special), 0)
        room = context - new - kept
        if not self.truncate_left or room < 1:
            raise ModelOutputError(
                f"{name}: {len(ids)} tokens and {new} new ones do not fit the model's context of "
                f"{context}; use a task with shorter texts, a model with a longer context, or "
                "--truncate-left"
            )
        log.warning("%s: %d tokens cut on the left to %d", name, len(ids), kept + room)
        return [*ids[:kept], *ids[-room:]]

    def stopped(self, request: Generate, new: Sequence[int]) -> bool:
        """Whether a continuation holds one of the request's stop strings."""
        if not request.stop:
            return False
        text = self.decode(new)
        return any(stop in text for stop in request.stop)

    def answer(self, request: Generate, new: Sequence[int]) -> Generated:
        """The answer that new tokens make, up to where it ended, whatever was added behind that."""
        ends = [at for at, token in enumerate(new) if token in self.ends]
        kept = new[: min(ends, default=len(new))]
        for n in range(1, len(kept) + 1) if request.stop else ():
            if self.stopped(request, kept[:n]):
                kept = kept[:n]
                break
        return Generated(request.id, cut_at_stop(self.decode(kept), request.stop), len(kept))

    def tensors(
        self, rows: Sequence[list[int]], device: str, left: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask, each of shape (rows, longest); ``left`` pads there."""
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            where = slice(width - len(row), width) if left else slice(0, len(row))
            ids[i, where] = torch.tensor(row)
            mask[i, where] = 1
        return ids.to(device), mask.to(device)
