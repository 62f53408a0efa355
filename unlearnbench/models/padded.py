"""Prompts continued through transformers' own ``generate``, padded on the left."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LogitsProcessorList, StoppingCriteriaList

from unlearnbench.models.batches import Budget, Tokens, generation_budget, padded, texts_budget
from unlearnbench.models.generation import Chooser, Prompts
from unlearnbench.requests import Generated


def padded_budget(model: Any, device: str, new: int, alone: bool) -> Budget:
    """Of prompts with ``new`` tokens to follow. alone: others would move an answer."""
    if alone:
        return texts_budget(1)
    # Rows are padded, and the cache is copied at each step.
    found = generation_budget(model, device)
    most = max(1, min(found.most // 2, 16_384 if device == "cpu" else 131_072))
    cost = lambda lengths: padded([n + new for n in lengths])  # noqa: E731
    return Budget(min(found.tokens, most), most, cost)


def run_padded(model: Any, tokens: Tokens, where: str, batch: Prompts) -> list[Generated]:
    """Prompts of one kind, padded on the left, through transformers' own ``generate``."""
    first, names = batch[0][0], [request.id for request, _ in batch]
    rows = [row for _, row in batch]
    ids, mask = tokens.tensors(rows, str(model.device), left=True)
    width, chooser = ids.shape[1], Chooser(names, where, first.sampling, tokens.barred)

    def processed(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return chooser.scores(scores, range(len(names)))

    def stopped(ids: torch.Tensor, _: object, **__: object) -> torch.Tensor:
        done = [tokens.stopped(first, row) for row in ids[:, width:].tolist()]
        return torch.tensor(done, device=ids.device, dtype=torch.bool)

    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=first.max_new_tokens,
        logits_processor=LogitsProcessorList([processed]),
        stopping_criteria=StoppingCriteriaList([stopped] if first.stop else []),
    )
    found = output[:, width:].tolist()
    return [tokens.answer(r, row) for (r, _), row in zip(batch, found, strict=True)]
