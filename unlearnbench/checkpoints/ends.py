"""The token ids at which a model's texts end, and one to pad with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """End-of-text ids: the tokenizer's and the generation config's, if they mark an end.

    Raises:
        CheckpointError: the generation config ends texts at an ordinary word, which would empty
            outputs and pass for forgetting.
    """
    for token in dict.fromkeys(map(str, tokenizer.all_special_tokens)):
        if re.fullmatch(r"[Ġ▁ ]?\w+", token):
            raise CheckpointError(
                f"the tokenizer lists {one_line(token, 40)!r}, an ordinary word, as a special "
                "token; outputs would lose it. Correct tokenizer_config.json"
            )
    config: Any = getattr(model, "generation_config", None)
    listed = named_ends(getattr(config, "eos_token_id", None))
    special = {tokenizer.eos_token_id, *tokenizer.all_special_ids}
    special |= set(getattr(tokenizer, "added_tokens_decoder", {}))
    odd = [token for token in listed if type(token) is not int or token not in special]
    if odd:
        raise CheckpointError(
            f"generation_config.json ends texts at token {one_line(odd[0], 40)}, an ordinary word "
            "of the tokenizer; correct its eos_token_id"
        )
    ids: list[Any] = [*listed, tokenizer.eos_token_id]
    return tuple(dict.fromkeys(int(i) for i in ids if i is not None))


def named_ends(named: object) -> list[object]:
    """``eos_token_id`` of a config as a list: it may be one id, several or none."""
    found = named if isinstance(named, list) else [named]
    return [token for token in found if token is not None]


def pad_token(tokenizer: PreTrainedTokenizerBase, eos: Sequence[int]) -> int:
    """Padding is masked, so any id serves where the tokenizer has none."""
    if tokenizer.pad_token_id is not None:
        return int(tokenizer.pad_token_id)
    return eos[0] if eos else 0
