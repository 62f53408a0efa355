"""Attention for rows that share the beginning of their prompts, held once, without padding.

transformers' models call an attention function by the name in their config, and a cache object:
ours notes which layer is at work, and the function stores and attends as the phase asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.cache_utils import Cache, DynamicLayer

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]

_NAME = "unlearnbench_rows"


class UnsupportedError(Exception):
    """The model's attention asks for something that is not computed here."""


class Layer(DynamicLayer):
    """One layer's pairs: shared (heads, tokens, width), own (rows, heads, room, width)."""

    def __init__(self, prefix: Pair | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefix = prefix
        self.own: Pair = (torch.empty(0), torch.empty(0))

    def make_room(self, key: torch.Tensor, value: torch.Tensor, rows: int, room: int) -> Pair:
        """Zeros at first, because what is masked is still multiplied by zero."""
        if self.own[0].numel() == 0:
            self.own = (
                key.new_zeros(rows, key.shape[1], room, key.shape[-1]),
                value.new_zeros(rows, value.shape[1], room, value.shape[-1]),
            )
        return self.own


class Prefix:
    """A forward pass over the tokens that all rows share, run as one row."""

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        """Store the pair; return attended values, all (batch, heads, tokens, width)."""
        layer.prefix = pair[0][0].contiguous(), pair[1][0].contiguous()
        return attend_after(None, query, pair, scale)


@dataclass(frozen=True)
class Packed:
    """A pass over the rest of the prompts, one behind the other in one row, so without padding."""

    parts: Sequence[tuple[int, int, int]]
    """(row, start, end) of each."""
    rows: int
    """Of the whole batch, for which memory is taken."""
    room: int
    """Tokens of a row."""

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        out = []
        kept = layer.make_room(*pair, self.rows, self.room)
        for row, start, end in self.parts:
            own = pair[0][:, :, start:end], pair[1][:, :, start:end]
            for place, tensor in zip(kept, own, strict=True):
                place[row, :, : end - start] = tensor[0]
            out.append(attend_after(layer.prefix, query[:, :, start:end], own, scale))
        return torch.cat(out, dim=2)


@dataclass(frozen=True)
class Step:
    """A pass over one further token of each row."""

    lengths: torch.Tensor
    """Tokens that a row has of its own before it, (rows,)."""
    seen: torch.Tensor
    """Which of the own places a row attends to, (rows, 1, 1, places), True where it does."""

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        rows, heads, _, width = pair[0].shape
        each = torch.arange(rows, device=query.device)
        for place, tensor in zip(layer.own, pair, strict=True):
            place[each, :, self.lengths] = tensor[:, :, 0]
        asked = (query * scale).reshape(rows, heads, query.shape[1] // heads, width)
        return _attend_rows(layer, asked, self.seen).reshape(rows, query.shape[1], 1, -1)


@dataclass(frozen=True)
class Several:
    """A pass over some further tokens of each row, one behind the other in one row."""

    rows: torch.Tensor
    """Which row each token is of, (tokens,)."""
    places: torch.Tensor
    """Which of its row's own places it takes, (tokens,)."""
    grid: torch.Tensor
    """Where in the pass each row's tokens are, (rows, most of a row); a shorter row's are filled
    up with any."""
    back: torch.Tensor
    """Where in the flattened grid each token is, (tokens,)."""
    seen: torch.Tensor
    """Which of its row's own places a token of the grid attends to, (rows, 1, most, places)."""
    parts: Sequence[tuple[int, int, int]] = ()
    """(start, end, own places) of each row, where rows attend one by one: one that has many tokens
    beside those that have few would fill up theirs."""

    def attend(self, layer: Layer, query: torch.Tensor, pair: Pair, scale: float) -> torch.Tensor:
        for place, tensor in zip(layer.own, pair, strict=True):
            place[self.rows, :, self.places] = tensor[0].transpose(0, 1)
        asked = query[0] * scale
        if not self.parts:
            found = self._attend(layer, asked[:, self.grid.flatten()], self.seen)
            return found[:, self.back][None]
        each = []
        for row, (start, end, places) in enumerate(self.parts):
            one = Layer(layer.prefix)
            one.own = layer.own[0][row : row + 1], layer.own[1][row : row + 1]
            seen = self.seen[row : row + 1, :, : end - start, :places]
            each.append(self._attend(one, asked[:, start:end], seen))
        return torch.cat(each, dim=1)[None]

    def _attend(self, layer: Layer, asked: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """Values for scaled queries of shape (heads, rows x most, width), one row behind another,
        of the same shape.
        """
        rows, _, most, _ = seen.shape
        heads, width = layer.own[0].shape[1], asked.shape[-1]
        group = asked.shape[0] // heads
        asked = asked.view(heads, group, rows, most, width)
        asked = asked.permute(2, 0, 1, 3, 4).reshape(rows, heads, group * most, width)
        found = _attend_rows(layer, asked, seen.repeat(1, 1, group, 1))
        found = found.reshape(rows, heads * group, most, -1).permute(1, 0, 2, 3)
        return found.reshape(heads * group, rows * most, -1)


def _attend_rows(layer: Layer, asked: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Values for scaled queries of shape (rows, heads, queries, width), of the same shape. seen:
    which own places each attends to, (rows, 1, queries or 1, places); the shared ones all do.
    """
    rows, heads, count, width = asked.shape
    places = seen.shape[-1]
    keys, values = (
        kept[:rows, :, :places].reshape(rows * heads, places, kept.shape[-1]) for kept in layer.own
    )
    own = _products(asked.reshape(rows * heads, count, width), keys)
    own = own.view(rows, heads, count, places).masked_fill_(~seen, float("-inf"))
    if layer.prefix is None:
        weights = _softmax(own)
        found = torch.bmm(weights.reshape(rows * heads, count, places), values)
        return found.view(rows, heads, count, -1)
    # One product for all rows, because they share these keys.
    shared_keys, shared_values = layer.prefix
    by_head = asked.transpose(0, 1).reshape(heads, rows * count, width)
    shared = _products(by_head, shared_keys)
    shared = shared.view(heads, rows, count, -1).transpose(0, 1)
    weights = _softmax(torch.cat([shared, own], dim=-1))
    on_shared, on_own = weights.split([shared.shape[-1], places], dim=-1)
    on_shared = on_shared.transpose(0, 1).reshape(heads, rows * count, -1)
    found = torch.bmm(on_shared, shared_values).view(heads, rows, count, -1).transpose(0, 1)
    return found + torch.bmm(on_own.reshape(rows * heads, count, places), values).view(
        rows, heads, count, -1
    )


def _products(asked: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """Of (n, queries, width) and (n, places, width). Of keys that are part of a larger room a CPU
    makes a slow copy in bf16 where they are on the right.
    """
    if keys.dtype == torch.bfloat16 and keys.device.type == "cpu" and not keys.is_contiguous():
        return torch.bmm(keys, asked.transpose(1, 2)).transpose(1, 2).contiguous()
    return torch.bmm(asked, keys.transpose(1, 2))


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(dim=-1, dtype=torch.float32).to(scores.dtype)


def attend_after(prefix: Pair | None, query: torch.Tensor, own: Pair, scale: float) -> torch.Tensor:
    """Causal attention of a row's tokens to the shared ones and to those before them."""
    key, value = own
    tokens, seen = query.shape[2], None
    if prefix is not None:
        key, value = (torch.cat([p[None], o], dim=2) for p, o in zip(prefix, own, strict=True))
        shared = prefix[0].shape[1]
        seen = torch.ones(tokens, shared + tokens, dtype=torch.bool, device=query.device)
        seen = seen.tril(shared)
    is_causal = prefix is None and tokens > 1
    return scaled_dot_product_attention(
        query, key, value, attn_mask=seen, is_causal=is_causal, scale=scale, enable_gqa=True
    )


class RowCache(Cache):
    """What models take for their cache. phase: of the next pass. prefix: holds shared tokens."""

    def __init__(self, prefix: RowCache | None = None) -> None:
        super().__init__(layers=[])
        self.rows: list[Layer] = [Layer(layer.prefix) for layer in prefix.rows] if prefix else []
        self.layers.extend(self.rows)
        self.phase: Prefix | Packed | Step | Several = Prefix()
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
        while len(self.rows) <= layer_idx:
            self.rows.append(Layer())
            self.layers.append(self.rows[-1])
        self.current = self.rows[layer_idx]
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # positions are always given, so nothing follows from this

    def forget(self, rows: torch.Tensor, places: torch.Tensor) -> None:
        """Make nothing of the values at these places, (n,) each: what is masked is still multiplied
        by zero, and they may not be finite.
        """
        for layer in self.rows:
            layer.own[1][rows, :, places] = 0

    def drop(self, row: int, last: int) -> None:
        """Forget ``row``; row ``last`` takes its place."""
        for layer in self.rows if row != last else ():
            for kept in layer.own:
                kept[row] = kept[last]


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
