"""Which models and prompts may be run in rows without padding: those whose logits stay what they
are. And where positions change with the length of a text (LongRoPE).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unlearnbench.models.batches import is_out_of_memory, layer_configs
from unlearnbench.models.generation import Continuer, Ending
from unlearnbench.models.rounding import rounds_to_bf16, unrounded

_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
# Share of the logits' spread. In bf16 the right way moves SmolLM2-135M's by 0.14, wrong positions
# and masks by 0.39 and more.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.15, torch.float16: 0.05}
_ROUNDED = 0.15


def moves_logits(own: torch.Tensor, found: torch.Tensor, model: Any) -> bool:
    """Whether ``found`` are other logits than ``own``, beyond what computing in ``model``'s dtype
    moves them. NaN in ``found`` is a move. Both are made inside ``unrounded``.
    """
    tolerance = _ROUNDED if rounds_to_bf16(model) else _TOLERANCE.get(model.dtype, _ROUNDED)
    return not float((found - own).abs().max()) <= tolerance * float(own.std())


def find_continuer(model: Any, device: str, ids: Sequence[int]) -> Continuer | str:
    """A continuer for ``model``, if its logits are those of the model's own forward, with products
    that round no activations.

    ids: a real prompt, of which a few tokens are run both ways.

    Returns:
        The continuer, or why the model has to go through transformers' ``generate``.
    """
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    reason = _unfit(whole)
    if reason is not None:
        return reason
    continuer = Continuer(whole, device)
    try:
        with unrounded(model):
            return _try(continuer, model, ids) or continuer
    except Exception as error:  # an unusual model may fail anywhere; its own generate is there
        if is_out_of_memory(error):
            raise
        return f"its attention is computed otherwise ({type(error).__name__})"


def _unfit(model: Any) -> str | None:
    config = model.config
    if config is not config.get_text_config():
        return "it is not only a language model"
    if any(getattr(part, "config", config) is not config for part in model.modules()):
        return "it is made of several models"
    if getattr(config, "attn_temperature_tuning", False):  # from 8,192 tokens on, by default
        return "its attention counts the places in a pass"
    kinds = set(getattr(config, "layer_types", None) or ()) - _LAYERS
    if kinds:
        return f"it has layers of kind {min(kinds)}"
    missing = {"position_ids", "past_key_values", "logits_to_keep"}
    missing -= set(inspect.signature(model.forward).parameters)
    return f"its forward has no {min(missing)}" if missing else None


def short_window(model: Any, longest: int) -> str | None:
    """Why prompts of ``longest`` tokens with their answers do not fit a window of the model's
    attention, inside which all layers attend alike, or the length at which its positions turn.
    """
    turns = [point for point in turning_points(model.config) if point < longest]
    if turns:
        return f"its positions turn to other factors beyond {turns[0]} tokens"
    layers = layer_configs(model.config)
    for name in ("sliding_window", "attention_chunk_size"):
        found = [getattr(layer, name, None) for layer in layers]
        window = min((size for size in found if isinstance(size, int)), default=longest)
        if window < longest:
            return f"its {name} of {window} is shorter than the longest prompt and answer"
    return None


@dataclass
class _Forced:
    """Chooses given tokens and keeps the logits."""

    tokens: Sequence[Sequence[int]]
    seen: list[list[torch.Tensor]]

    def choose(self, logits: torch.Tensor, rows: Sequence[int]) -> list[int]:
        """The next given token of each row."""
        for row, own in zip(rows, logits, strict=True):
            self.seen[row].append(own.float())
        return [self.tokens[row][len(self.seen[row]) - 1] for row in rows]


def unlike_tokens(ids: Sequence[int], vocabulary: int) -> list[int]:
    """Twelve tokens of which most differ: of those that are all alike every one attends to the
    same, and no wrong place or mask would show.
    """
    few = list(ids)[:12]
    if len(few) == 12 and len(set(few)) > 6:
        return few
    return [n * vocabulary // 13 for n in range(1, 13)]


def _try(continuer: Continuer, model: Any, ids: Sequence[int]) -> str | None:
    """Rows of different lengths behind a prefix, two steps each, against the forward of ``model``
    as it was given (an adapter around it included), of each row from its start. Returns what is
    wrong.
    """
    few = unlike_tokens(ids, int(model.config.get_text_config().vocab_size))
    shared, rows = few[:4], [few[4:6], few[5:11], few[8:11]]
    forced = _Forced([few[:3], few[3:6], few[6:9]], [[], [], []])
    ending = Ending(frozenset(), lambda _: False, 3)
    continuer.continue_rows(continuer.run_prefix(shared), len(shared), rows, forced.choose, ending)
    for row, given, logits in zip(rows, forced.tokens, forced.seen, strict=True):
        whole = torch.tensor([[*shared, *row, *given[:2]]], device=continuer.device)
        own = model(input_ids=whole, use_cache=False).logits[0, -3:].float()
        found = torch.stack(logits).to(own.device)  # a model on several GPUs may differ here
        if not bool(own.isfinite().all()):  # then generate says so, with the sample's name
            return "its logits are NaN or infinite"
        if moves_logits(own, found, model):
            return "its attention gives other logits when prompts are run together"
    return None


def turning_points(config: Any) -> tuple[int, ...]:
    """Lengths in tokens up to which LongRoPE's short factors hold, as in Phi-3 with a context of
    128k; none for other models. One pass beyond such a length turns every position of every row in
    it to other factors.

    Source: arXiv 2402.13753; transformers' ``dynamic_rope_update``.
    """
    stated = getattr(config, "rope_parameters", None) or {}
    parts = [stated, *(part for part in stated.values() if isinstance(part, Mapping))]
    found = [
        part.get("original_max_position_embeddings")
        for part in parts
        if part.get("rope_type") == "longrope"
    ]
    return tuple(sorted({length for length in found if isinstance(length, int)}))


def side_of(points: tuple[int, ...], length: int, new: int) -> tuple[int, ...]:
    """Where a text of ``length`` tokens and ``new`` further ones lies: for each point 0 before it,
    1 crossing it while it is continued, 2 beyond it. Texts of one side may be run together; those
    that cross a point run alone.

    Example:
        >>> side_of((4096,), 4000, 32), side_of((4096,), 4000, 128), side_of((), 4000, 128)
        ((0,), (1,), ())
    """
    return tuple((length > point) + (length + new > point) for point in points)
