"""A tokenizer whose texts begin with a token that steers the model, as Quark's do."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from unlearnbench.checkpoints.tokenizer import REWARD, probe_ids
from unlearnbench.errors import OptionError


def steered(tokenizer: Any, count: int) -> tuple[Any, tuple[int, ...], tuple[int, ...]]:
    """``tokenizer`` with ``count`` new special tokens, of which the first stands behind the begin
    token of every text; their ids; and the special tokens before it. Raises OptionError where the
    tokenizer has such tokens already, or no template that can be written to.
    """
    from tokenizers import AddedToken, Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = [REWARD.format(number) for number in range(1, count + 1)]
    if not getattr(tokenizer, "is_fast", False):
        raise _refused("it has no tokenizer.json")
    if names[0] in tokenizer.get_vocab():
        raise OptionError(f"quark: --model has {names[0]} already; begin at a model without it")
    backend = copy.deepcopy(tokenizer.backend_tokenizer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    ids = tuple(backend.token_to_id(name) for name in names)
    state = json.loads(backend.to_str())
    state["post_processor"] = _behind_begin(state["post_processor"], names[0], ids[0])
    kept = ("model_max_length", "padding_side", "truncation_side", "clean_up_tokenization_spaces")
    facts = {name: getattr(tokenizer, name) for name in kept if hasattr(tokenizer, name)}
    facts |= dict(tokenizer.special_tokens_map)
    if tokenizer.chat_template is not None:
        facts["chat_template"] = tokenizer.chat_template
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **facts)
    before, after = probe_ids(tokenizer), probe_ids(made)
    at = after[0].index(ids[0]) if ids[0] in after[0] else 0
    if after != [[*row[:at], ids[0], *row[at:]] for row in before]:
        raise _refused("its texts would become others")
    return made, ids, tuple(after[0][:at])


def _refused(reason: str) -> OptionError:
    return OptionError(
        "quark writes its best token into the tokenizer's template, and this one takes none: "
        + reason
    )


def _behind_begin(state: dict[str, Any] | None, name: str, token: int) -> dict[str, Any]:
    """A post-processor of tokenizer.json that puts ``name`` before the first text, behind what
    stands there.
    """
    if state is None:
        return _template(name, token)
    if state["type"] == "TemplateProcessing":
        piece = {"SpecialToken": {"id": name, "type_id": 0}}
        for part in ("single", "pair"):
            at = next(i for i, found in enumerate(state[part]) if "Sequence" in found)
            state[part].insert(at, piece)
        state["special_tokens"][name] = {"id": name, "ids": [token], "tokens": [name]}
        return state
    if state["type"] == "ByteLevel":
        return {"type": "Sequence", "processors": [state, _template(name, token)]}
    if state["type"] == "Sequence":
        parts = state["processors"]
        for at, part in enumerate(parts):
            if part["type"] == "TemplateProcessing":
                parts[at] = _behind_begin(part, name, token)
                return state
        return {**state, "processors": [*parts, _template(name, token)]}
    raise _refused(f"its post-processor is a {state['type']}")


def _template(name: str, token: int) -> dict[str, Any]:
    """One of the token and the text."""

    def text(which: str, kind: int) -> dict[str, Any]:
        return {"Sequence": {"id": which, "type_id": kind}}

    single: Sequence[dict[str, Any]] = [
        {"SpecialToken": {"id": name, "type_id": 0}},
        text("A", 0),
    ]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1)],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }
