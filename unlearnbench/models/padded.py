"""Generation through transformers' own ``generate``: for models whose attention is unusual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlearnbench.models.decoding import logits_processors, stopping_criteria
from unlearnbench.models.tokens import Tokens
from unlearnbench.requests import Generate, Generated, cut_at_stop


def padding_moves(model: Any, tokens: Tokens, ids: Sequence[int]) -> bool:
    """Whether a prompt's first logits are others beside a longer prompt: a model without a mask
    (RWKV) reads the padding as text.
    """
    import torch

    from unlearnbench.models.packable import moves_logits, unlike_tokens
    from unlearnbench.models.rounding import unrounded

    few = unlike_tokens(ids, tokens.vocabulary)
    with torch.no_grad(), unrounded(model):
        alone = _first_logits(model, tokens, [few[:7]])[0]
        beside = _first_logits(model, tokens, [few[:7], few])[0]
    if not bool(alone.isfinite().all()):
        return False  # said with the sample's name when it is asked
    return moves_logits(alone, beside, model)


def _first_logits(model: Any, tokens: Tokens, rows: Sequence[list[int]]) -> Any:
    ids, mask = tokens.tensors(rows, str(model.device), left=True)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return output.logits[0].float()


def generate_padded(
    model: Any, tokens: Tokens, precision: str, batch: Sequence[tuple[Generate, list[int]]]
) -> list[Generated]:
    """Answers to one batch of requests of one kind, padded on the left.

    Raises:
        ModelOutputError: non-finite logits; names the sample and ``precision``.
    """
    first = batch[0][0]
    names = [request.id for request, _ in batch]
    ids, mask = tokens.tensors([row for _, row in batch], str(model.device), left=True)
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=first.max_new_tokens,
        logits_processor=logits_processors(names, precision, first.sampling),
        stopping_criteria=stopping_criteria(first.stop, ids.shape[1], tokens.decode),
    )
    rows = output[:, ids.shape[1] :].tolist()
    return [cut_answer(tokens, r, row) for (r, _), row in zip(batch, rows, strict=True)]


def cut_answer(tokens: Tokens, request: Generate, row: list[int]) -> Generated:
    """A row of ``generate`` up to where it ended, whatever its neighbours made the batch add."""
    ends = [at for at, token in enumerate(row) if token in tokens.ends]
    kept = row[: min(ends, default=len(row))]
    for n in range(1, len(kept) + 1) if request.stop else ():
        if tokens.stopped(request, kept[:n]):
            kept = kept[:n]
            break
    return Generated(request.id, cut_at_stop(tokens.decode(kept), request.stop), len(kept))
