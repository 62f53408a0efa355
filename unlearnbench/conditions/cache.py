"""The key-value cache in 8 or 4 bits, weights as they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unlearnbench.conditions.base import (
    ConditionSpec,
    LoadPlan,
    Materials,
    ModelWithProof,
    Option,
    file_of,
    find_condition,
    groups,
)
from unlearnbench.conditions.proof import distinct_values
from unlearnbench.errors import NotInForceError, PrecisionError
from unlearnbench.results import FULL

if TYPE_CHECKING:
    import torch

    from unlearnbench.checkpoints.checkpoint import CheckpointSource
    from unlearnbench.checkpoints.source import Source

_TOKENS = 24  # that the proof runs
_BESIDE = 0.05  # of a step
_LEAST_GROUP = 8  # of two numbers the smallest and the largest are both


def _spec(bits: int) -> ConditionSpec:
    return ConditionSpec(
        f"kv-int{bits}",
        "cached",
        f"keys and values in {bits} bits as they are cached, with shift per group of at most 64",
        options={"cache_bits": bits, "residual_length": 0},
        kernels=("native",),  # no plain weights compute the same
    )


CONDITIONS = (_spec(8), _spec(4))


def settle(spec: ConditionSpec, source: Source, materials: Materials) -> Mapping[str, Option]:
    """Raises PrecisionError where a layer's config states no heads. How wide those are that are
    cached, the proof sees: it need not be ``head_dim`` (DeepSeek).
    """
    from unlearnbench.models.batches import layer_configs

    if min(_width(layer) for layer in layer_configs(source.config.get_text_config())) <= 0:
        raise PrecisionError(f"{spec.name}: {source.files.path} has no attention heads to cache")
    return {}


def _width(layer: Any) -> int:
    """Of a layer's heads; 0 where it states none."""
    heads, hidden = (getattr(layer, f, None) for f in ("num_attention_heads", "hidden_size"))
    return getattr(layer, "head_dim", None) or (hidden // heads if heads and hidden else 0)


def load(spec: ConditionSpec, source: CheckpointSource, plan: LoadPlan) -> ModelWithProof:
    """Raises NotInForceError where a forward pass does not meet every layer's keys and values
    rounded, as in layers that are no attention; PrecisionError where so few numbers share constants
    that nothing would be rounded; and what loading as stored raises.
    """
    from unlearnbench.models.cached import Rounding, round_cache

    full, rounding = find_condition(FULL), Rounding(int(spec.options["cache_bits"]))
    found = file_of(full).load(full, source, replace(plan, kernel=None))
    try:
        round_cache(found.model, rounding)
        figures = _prove(spec, found.model, rounding)
    except (AttributeError, TypeError, ValueError, IndexError) as error:  # an unusual model
        raise NotInForceError(
            f"{spec.name}: {source.files.path} takes no cache ({type(error).__name__})"
        ) from error
    return found._replace(proof=found.proof.model_copy(update={"figures": figures}))


def _prove(spec: ConditionSpec, model: Any, rounding: Any) -> dict[str, float]:
    """Figures of a pass over some tokens, which meets the cache without being given one."""
    import torch
    from transformers import DynamicCache

    from unlearnbench.models.cached import group_of

    config = model.config.get_text_config()
    layers, rows = int(config.num_hidden_layers), int(config.vocab_size)
    ids = torch.tensor([[n * rows // (_TOKENS + 1) for n in range(1, _TOKENS + 1)]])
    ids = ids.to(model.get_input_embeddings().weight.device)
    watched: list[tuple[torch.Tensor, torch.Tensor]] = []
    cache: Any = DynamicCache(config=model.config)
    rounding.watched = watched
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        rounding.watched = None
        again = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        rounding.enabled = False
        plain = model(input_ids=ids, use_cache=False).logits
        rounding.enabled = True
    if len(watched) != 2 * layers or len(cache.layers) != layers:
        raise NotInForceError(
            f"{spec.name}: {len(watched) // 2} of {layers} layers cache keys and values; the "
            "others are no attention, or share them"
        )
    kept: list[Any] = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    group, width = min((group_of(made.shape[-1]), made.shape[-1]) for _, made in watched)
    if group < _LEAST_GROUP:
        raise PrecisionError(
            f"{spec.name}: cached heads of {width} numbers part into groups of {group} alone, of "
            "which constants keep nearly all"
        )
    codes, off, whole = 0, 0.0, 0.0
    for (given, made), held in zip(watched, kept, strict=True):
        parts = groups(made.flatten(0, -2), group_of(made.shape[-1])).float()
        codes = max(codes, distinct_values(parts))
        off += float((made.double() - given.double()).square().sum())
        whole += float(given.double().square().sum())
        is_rounded = made.dtype != torch.float32 or _on_levels(parts, rounding.bits)
        # A layer with a window holds the last ones alone.
        last = made[..., made.shape[-2] - held.shape[-2] :, :]
        is_held = held.numel() > 0 and torch.equal(held, last)
        if not is_rounded or not is_held or torch.equal(given, made):
            raise NotInForceError(f"{spec.name}: a layer's cache does not hold what was rounded")
    if codes > 2**rounding.bits or torch.equal(logits, plain) or not torch.equal(logits, again):
        raise NotInForceError(
            f"{spec.name}: a group of the cache holds {codes} values, or they move no logit"
        )
    figures = {"cache_layers": layers, "cache_group": group, "cache_codes": codes}
    return figures | {"cache_error": (off / whole) ** 0.5}


def _on_levels(parts: torch.Tensor, bits: int) -> bool:
    """Whether a row's numbers are on 2^bits even levels from its smallest to its largest, as seen
    in fp32; 16-bit numbers lie beside them.
    """
    low, high = parts.amin(1, keepdim=True), parts.amax(1, keepdim=True)
    codes = (parts - low) * (2**bits - 1) / (high - low).clamp(min=1e-30)
    return bool(((codes - codes.round()).abs() < _BESIDE).all())
