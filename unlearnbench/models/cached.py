"""Keys and values in few bits: a model's cache rounds them as they are written, and attention meets
them so, a token's own too. As in vLLM and llama.cpp, there is no window of recent tokens in full
precision, which transformers' own ``QuantizedCache`` has, and the prompt's pass meets them as well.

A group lies within one head's vector of one token, so what else is in a batch, in a pass, padding
and drafts among it, moves nothing but last bits; and a pass over a whole text, in which it is
scored, meets what token by token would.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from transformers.cache_utils import Cache, DynamicCache

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]

_GROUP = 64  # transformers' q_group_size


def group_of(width: int) -> int:
    """Numbers of a head's vector of so many that share constants: its largest part up to 64.
    Raises ValueError where there is none.
    """
    return max(size for size in range(1, min(width, _GROUP) + 1) if width % size == 0)


class Rounding:
    """To 2^bits even levels from a group's smallest number to its largest: optimum-quanto's formula
    (``MaxOptimizer``), which transformers' cache uses in 4 bits, computed in float32.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.enabled = True
        self.watched: list[Pair] | None = None
        """If not None: what was given, and what was made of it."""

    def __call__(self, states: torch.Tensor) -> torch.Tensor:
        """Keys or values of shape (..., width)."""
        if not self.enabled:
            return states
        parts = states.float().unflatten(-1, (-1, group_of(states.shape[-1])))
        low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
        step = (high - low) / (2**self.bits - 1)
        codes = ((parts - low) / step.where(step > 0, 1.0)).round().clamp(0, 2**self.bits - 1)
        rounded: torch.Tensor = (step * codes + low).flatten(-2).to(states.dtype)
        if self.watched is not None:
            self.watched.append((states.detach(), rounded.detach()))
        return rounded


class RoundedCache(Cache):
    """What a cache of any class becomes besides that class."""

    rounding: Rounding

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Pair:
        """Called by a layer with new tokens alone, so each is rounded once."""
        pair = self.rounding(key_states), self.rounding(value_states)
        return super().update(*pair, *args, **kwargs)


_KINDS: dict[Any, Any] = {}
"""A cache's class -> that class rounded."""


def _rounded(kind: Any) -> Any:
    if kind not in _KINDS:
        _KINDS[kind] = type(f"Rounded{kind.__name__}", (RoundedCache, kind), {})
    return _KINDS[kind]


def round_cache(network: Any, rounding: Rounding) -> None:
    """Let every forward pass of a model, also of its decoder alone and without a cache, meet keys
    and values as ``rounding`` leaves them. Raises whatever a model without a decoder raises.
    """

    def before(body: Any, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        cache: Any = given.get("past_key_values")
        if cache is None:
            cache = DynamicCache(config=network.config)
        if not isinstance(cache, RoundedCache):
            cache.__class__ = _rounded(type(cache))
        cache.rounding = rounding
        return args, given | {"past_key_values": cache}

    body = network.get_decoder()
    body.register_forward_pre_hook(before, with_kwargs=True)
    body.cache_rounding = rounding
