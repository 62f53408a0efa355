"""How many tokens a batch may hold. On CPU from the model's sizes and from whether its weights are
mapped files, not from the memory that is free, so that the same command forms the same batches.
"""

from __future__ import annotations

from typing import Any

import torch

from unlearnbench.models.batches import Budget, padded

_MIB = 2**20
# Beyond this many tokens products are as fast as they get on CPU, and padding only costs.
_CPU_SCORED = 2048
_CPU_CACHE = 256 * _MIB
# Sixteen rows of 1,100 tokens of SmolLM2-135M in fp32 take 810 MB; more rows cost as much each.
_MOST_SPARE = 640 * _MIB


def layer_configs(config: Any) -> list[Any]:
    """The config of each layer. Where layers differ (Gemma 4), transformers refuses to be asked for
    the model as a whole.
    """
    if getattr(config, "is_heterogeneous", False):
        return list(config.per_layer_config)
    return [config] * (getattr(config, "num_hidden_layers", None) or 1)


def cached_bytes(config: Any, itemsize: int) -> int:
    """Bytes of keys and values that one token takes in all layers."""
    return sum(2 * _width(layer) * itemsize for layer in layer_configs(config))


def _width(config: Any) -> int:
    """Of one layer's keys, over all heads."""
    heads = getattr(config, "num_attention_heads", None) or 1
    kept = getattr(config, "num_key_value_heads", None) or heads
    hidden = getattr(config, "hidden_size", None) or 1024
    return int(kept * (getattr(config, "head_dim", None) or hidden // heads))


def _cache_room(model: Any, device: str, spare: int) -> int:
    """Bytes for keys and values."""
    if device == "cpu":
        weights = sum(p.numel() * p.element_size() for p in model.parameters())
        return int(_CPU_CACHE + 0.15 * weights) + min(spare, _MOST_SPARE)
    free, _ = torch.cuda.mem_get_info(device)
    # What earlier tasks took and torch keeps for reuse is free too: else a task's batches would
    # depend on which tasks this process had run before it.
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(0.6 * free)


def generation_budget(model: Any, device: str, spare: int = 0) -> Budget:
    """Places that rows have in the cache beside the shared prefix: as many each as the longest row
    needs with its new tokens.

    spare: bytes of weights of which there is no second copy in memory (``Source.give_back``).
    """
    config = model.config.get_text_config()
    most = max(1, _cache_room(model, device, spare) // cached_bytes(config, model.dtype.itemsize))
    if device == "cpu":
        return Budget(most, most)
    power = 2 ** (most.bit_length() - 1)  # the same from run to run, whatever else is there
    return Budget(max(1, power // 4), power)


def padded_budget(model: Any, device: str) -> Budget:
    """For transformers' ``generate``, which pads rows and copies the cache at each step."""
    found = generation_budget(model, device)
    most = max(1, min(found.most // 2, 16_384 if device == "cpu" else 131_072))
    return Budget(min(found.tokens, most), most, padded)


def scoring_budget(device: str) -> Budget:
    """Tokens of a padded batch whose logits never stand whole in memory."""
    if device == "cpu":
        return Budget(_CPU_SCORED, _CPU_SCORED, padded)
    return Budget(8192, 131_072, padded)


def whole_budget(vocabulary: int, device: str) -> Budget:
    """Tokens of a padded batch whose logits do: 1 GiB of float32 on CPU, 8 GiB on a GPU."""
    most = max(1, (2**30 if device == "cpu" else 2**33) // (4 * vocabulary))
    return Budget(most, most, padded)
