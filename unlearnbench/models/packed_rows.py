"""Attention for rows that share the beginning of their prompts: the shared keys and values are
held once, no row is padded, and a row that has ended is gone.

transformers' models call an attention function by the name in their config and hand their keys and
values to a cache object. Both are ours here: the cache only notes which layer is at work, and the
function stores and attends as the phase of the generation asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

_NAME = "unlearnbench_rows"


class UnsupportedError(Exception):
    """The model's attention asks for something that is not computed here."""


class Layer(DynamicLayer):
    """What one layer keeps. prefix: keys and values of shape (heads, shared tokens, width), or
    None. own_keys, own_values: (rows, heads, room, width), a row's own tokens from 0 on.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefix: tuple[torch.Tensor, torch.Tensor] | None = None
        self.own_keys: torch.Tensor = torch.empty(0)
        self.own_values: torch.Tensor = torch.empty(0)

    def make_room(self, key: torch.Tensor, value: torch.Tensor, rows: int, room: int) -> None:
        """Zeros, because what is masked is still multiplied by zero."""
        if self.own_keys.numel() == 0:
            self.own_keys = key.new_zeros(rows, key.shape[1], room, key.shape[-1])
            self.own_values = value.new_zeros(rows, value.shape[1], room, value.shape[-1])


class Phase(Protocol):
    """One kind of forward pass."""

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        """Store keys and values and return the attended values, each (batch, heads, tokens, width)
        as in ``query``.
        """


Pair = tuple[torch.Tensor, torch.Tensor]


class Prefix:
    """The tokens that all rows share, run as one row."""

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        """See ``Phase``."""
        key, value = pair
        layer.prefix = key[0].contiguous(), value[0].contiguous()
        return _causal(query, key, value, scale)


@dataclass(frozen=True)
class Packed:
    """The rest of the prompts, one behind the other in a single row, so without padding.

    parts: (row, start, end) of each. rows, room: of the whole batch, for which memory is taken.
    """

    parts: Sequence[tuple[int, int, int]]
    rows: int
    room: int

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        """See ``Phase``."""
        key, value = pair
        layer.make_room(key, value, self.rows, self.room)
        out = []
        for row, start, end in self.parts:
            own_key, own_value = key[:, :, start:end], value[:, :, start:end]
            layer.own_keys[row, :, : end - start] = own_key[0]
            layer.own_values[row, :, : end - start] = own_value[0]
            out.append(_after_prefix(layer, query[:, :, start:end], (own_key, own_value), scale))
        return torch.cat(out, dim=2)


@dataclass(frozen=True)
class Step:
    """One further token of each row. lengths: tokens that a row has of its own before it, (rows,).

    seen: which of the own places a row attends to, (rows, 1, 1, places), True where it does.
    """

    lengths: torch.Tensor
    seen: torch.Tensor

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        """See ``Phase``."""
        key, value = pair
        rows, heads, _, width = key.shape
        group, places = query.shape[1] // heads, self.seen.shape[-1]
        each = torch.arange(rows, device=key.device)
        layer.own_keys[each, :, self.lengths] = key[:, :, 0]
        layer.own_values[each, :, self.lengths] = value[:, :, 0]
        keys = layer.own_keys[:rows, :, :places].reshape(rows * heads, places, width)
        values = layer.own_values[:rows, :, :places].reshape(rows * heads, places, -1)
        asked = (query * scale).reshape(rows, heads, group, width)
        own = torch.bmm(asked.reshape(rows * heads, group, width), keys.transpose(1, 2))
        own = own.view(rows, heads, group, places).masked_fill_(~self.seen, float("-inf"))
        if layer.prefix is None:
            weights = _softmax(own)
            found = torch.bmm(weights.reshape(rows * heads, group, places), values)
            return found.reshape(rows, heads * group, 1, -1)
        # One product for all rows, because they share these keys.
        shared_keys, shared_values = layer.prefix
        by_head = asked.transpose(0, 1).reshape(heads, rows * group, width)
        shared = torch.bmm(by_head, shared_keys.transpose(1, 2))
        shared = shared.view(heads, rows, group, -1).transpose(0, 1)
        weights = _softmax(torch.cat([shared, own], dim=-1))
        on_shared, on_own = weights.split([shared.shape[-1], places], dim=-1)
        on_shared = on_shared.transpose(0, 1).reshape(heads, rows * group, -1)
        found = torch.bmm(on_shared, shared_values).view(heads, rows, group, -1).transpose(0, 1)
        found = found + torch.bmm(on_own.reshape(rows * heads, group, places), values).view(
            rows, heads, group, -1
        )
        return found.reshape(rows, heads * group, 1, -1)


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    return scaled_dot_product_attention(
        query, key, value, is_causal=query.shape[2] > 1, scale=scale, enable_gqa=True
    )


def _after_prefix(layer: Layer, query: torch.Tensor, own: Pair, scale: float) -> torch.Tensor:
    if layer.prefix is None:
        return _causal(query, *own, scale)
    key = torch.cat([layer.prefix[0][None], own[0]], dim=2)
    value = torch.cat([layer.prefix[1][None], own[1]], dim=2)
    tokens, shared = query.shape[2], layer.prefix[0].shape[1]
    seen = torch.ones(tokens, shared + tokens, dtype=torch.bool, device=query.device)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=seen.tril(shared), scale=scale, enable_gqa=True
    )


class RowCache(Cache):
    """What transformers' models take for their cache. ``phase`` is what the next pass does."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.phase: Phase = Prefix()
        self.current = Layer()

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> Pair:
        """Called by a layer right before its attention; that stores them."""
        while len(self.layers) <= layer_idx:
            self.layers.append(Layer())
        self.current = self.layers[layer_idx]  # type: ignore[assignment]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given, so nothing follows from this."""
        return 0

    def begin(self) -> RowCache:
        """A cache for another batch with the same prefix."""
        fresh = RowCache()
        for layer in self._rows():
            further = Layer()
            further.prefix = layer.prefix
            fresh.layers.append(further)
        return fresh

    def drop(self, row: int, last: int) -> None:
        """Forget ``row``; row ``last`` takes its place."""
        if row != last:
            for layer in self._rows():
                layer.own_keys[row] = layer.own_keys[last]
                layer.own_values[row] = layer.own_values[last]

    def _rows(self) -> Iterator[Layer]:
        for layer in self.layers:
            if isinstance(layer, Layer):
                yield layer


_ACTIVE: ContextVar[RowCache] = ContextVar("active row cache")


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise UnsupportedError(f"its attention uses {name}")
    if attention_mask is not None:
        raise UnsupportedError("its attention brings its own mask")
    cache = _ACTIVE.get()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = cache.phase.attend(cache.current, query, (key, value), scale)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _attention)


@contextmanager
def attending(config: Any, cache: RowCache) -> Iterator[None]:
    """Let the model with ``config`` attend by ``cache`` meanwhile."""
    before = config._attn_implementation
    token = _ACTIVE.set(cache)
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before
        _ACTIVE.reset(token)
