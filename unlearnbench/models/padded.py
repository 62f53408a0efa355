"""Generation through transformers' own ``generate``: for models whose attention is unusual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from unlearnbench.models.batches import Budget, generation_budget, padded, texts_budget
from unlearnbench.models.generation import Chooser
from unlearnbench.models.packable import moves_logits, unlike_tokens
from unlearnbench.models.rounding import unrounded
from unlearnbench.models.tokens import Tokens
from unlearnbench.requests import Generate, Generated


def padding_moves(model: Any, tokens: Tokens, ids: Sequence[int]) -> bool:
    """Whether a prompt's first logits are others beside a longer prompt: a model without a mask
    (RWKV) reads the padding as text.
    """
    few = unlike_tokens(ids, tokens.vocabulary)
    with torch.no_grad(), unrounded(model):
        alone = _first_logits(model, tokens, [few[:7]])[0]
        beside = _first_logits(model, tokens, [few[:7], few])[0]
    if not bool(alone.isfinite().all()):
        return False  # said with the sample's name when it is asked
    return moves_logits(alone, beside, model)


def _first_logits(model: Any, tokens: Tokens, rows: Sequence[list[int]]) -> torch.Tensor:
    ids, mask = tokens.tensors(rows, str(model.device), left=True)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits: torch.Tensor = output.logits[0]
    return logits.float()


class PaddedPrompts:
    """Prompts of one kind, padded on the left."""

    def __init__(self, model: Any, tokens: Tokens, where: str) -> None:
        self._model, self._tokens, self._where = model, tokens, where

    def budget(self, device: str, new: int, alone: bool) -> Budget:
        """Of a batch of prompts that ``new`` tokens follow. alone: others would move its answer."""
        if alone:
            return texts_budget(1)
        # Rows are padded, and the cache is copied at each step.
        found = generation_budget(self._model, device)
        most = max(1, min(found.most // 2, 16_384 if device == "cpu" else 131_072))
        cost = lambda lengths: padded([n + new for n in lengths])  # noqa: E731
        return Budget(min(found.tokens, most), most, cost)

    def run(self, batch: Sequence[tuple[Generate, list[int]]]) -> list[Generated]:
        """Answers to some of them.

        Raises:
            ModelOutputError: non-finite logits; names the sample.
        """
        first, names = batch[0][0], [request.id for request, _ in batch]
        rows = [row for _, row in batch]
        ids, mask = self._tokens.tensors(rows, str(self._model.device), left=True)
        width, chooser = ids.shape[1], Chooser(names, self._where, first.sampling)

        def processed(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return chooser.scores(scores, range(len(names)))

        def stopped(ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
            done = [self._tokens.stopped(first, row) for row in ids[:, width:].tolist()]
            return torch.tensor(done, device=ids.device, dtype=torch.bool)

        output = self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=first.max_new_tokens,
            logits_processor=LogitsProcessorList([processed]),
            stopping_criteria=StoppingCriteriaList([stopped] if first.stop else []),
        )
        found = output[:, width:].tolist()
        return [self._tokens.answer(r, row) for (r, _), row in zip(batch, found, strict=True)]
