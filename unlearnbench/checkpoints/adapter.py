"""A PEFT adapter: its config checked first, its weights attached to their base, none left out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles
from unlearnbench.checkpoints.limits import check_numbers, check_patterns, walk_json
from unlearnbench.checkpoints.load import refusing
from unlearnbench.errors import CheckpointError, one_line
from unlearnbench.util.process import muted, unmoved_caches

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

log = logging.getLogger("unlearnbench")

_MODULES = ("target_modules", "exclude_modules", "target_parameters", "modules_to_save")
# PEFT's starts of a LoRA of which a saved one is read as it was: those that leave the base alone,
# and two that take a part out of it, which loading takes out of the base again.
_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
_CUTS = ("pissa", "olora")
_PATTERNS = (*_MODULES, "layers_pattern", "rank_pattern", "alpha_pattern")


def check_adapter_config(files: CheckpointFiles, names: Iterable[str], kept: bool) -> None:
    """Raise CheckpointError where PEFT would ignore an option, follow unchecked files, import code,
    make another model at each load, take absurd memory or never end. names: of the base's modules
    and parameters. kept: beside its base, not merged.
    """
    config = files.config
    where = f"{files.path}: adapter_config.json"
    check_numbers(config, where)
    _check_kind(config, files.path)
    start = config.get("init_lora_weights")
    if start not in (*_STARTS, *_CUTS):
        raise CheckpointError(
            f"{where} has init_lora_weights {one_line(start, 40)!r}: training took a part out of "
            "the base's weights that PEFT cannot find again, so each load would be another model; "
            "save it as an ordinary LoRA (PEFT's path_initial_model_for_weight_conversion)"
        )
    if start in _CUTS and kept:
        raise CheckpointError(
            f"{where} has init_lora_weights {start!r}, which takes a part out of the base's own "
            "weights, not of quantized ones; use --adapter merge"
        )
    shapes = [tensor.shape for tensor in files.tensors.values()] or [(files.size,)]
    longest = max((n for shape in shapes for n in shape), default=0)
    for key, value in walk_json({"r": config.get("r"), "rank": config.get("rank_pattern")}):
        if isinstance(value, int) and value > max(longest, 1):
            raise CheckpointError(
                f"{where} has {key} {value}, and no stored tensor is longer than {longest}; "
                "refused before memory is taken"
            )
    copies = config.get("layer_replication")
    ends = [value for _, value in walk_json(copies) if isinstance(value, int)]
    if copies and sum(map(abs, ends)) > files.count**2:
        raise CheckpointError(
            f"{where} has a layer_replication of more layers than its {files.count} tensors "
            "can be for; refused"
        )
    check_patterns([config[key] for key in _PATTERNS if config.get(key)], names, where)


def _check_kind(config: Mapping[str, Any], path: str) -> None:
    """PEFT ignores options that it does not know; one that is on would be missing in the model."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = config.get("peft_type")
    mapping: dict[Any, Any] = dict(PEFT_TYPE_TO_CONFIG_MAPPING)
    known = mapping.get(kind) if isinstance(kind, str) else None
    if known is None:
        raise CheckpointError(
            f"{path}: adapter_config.json has peft_type {one_line(kind, 40)!r}, which PEFT "
            "does not know; update peft or correct the file"
        )
    names = {field.name for field in fields(known)}
    odd = None
    if "num_virtual_tokens" in names:  # PEFT's mark of prompt learning
        odd = f"a {kind} adapter changes prompts, not weights"
    elif config.get("alora_invocation_tokens"):  # PEFT's wrapper looks for them, layers do not
        odd = "an adapter with alora_invocation_tokens acts only behind certain words"
    elif kind == "XLORA":
        odd = "adapter_config.json would make PEFT load further adapters"
    elif config.get("megatron_config"):
        odd = "adapter_config.json would make PEFT load a Python package of its choice"
    if odd is not None:
        raise CheckpointError(f"{path}: {odd}; it is not supported")
    known_keys = names | {"peft_version"}
    lost = [key for key, value in config.items() if value and key not in known_keys]
    if lost:
        raise CheckpointError(
            f"{path}: the adapter uses {one_line(lost[0], 80)}, which this version of PEFT "
            "does not know; update peft"
        )


def merge_adapter(model: PreTrainedModel, files: CheckpointFiles, dtype: torch.dtype) -> Any:
    """Add the adapter to the weights of ``model``, made ``dtype``; raises as ``attach_adapter``."""
    first, last = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = last is not None and last.weight is first.weight
    adapted: Any = attach_adapter(model, files)
    if model.dtype != dtype:
        adapted = adapted.to(dtype)
    _untie(adapted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = adapted.merge_and_unload()
    first, last = merged.get_input_embeddings(), merged.get_output_embeddings()
    if is_tied:
        still = first.weight.shape == last.weight.shape and bool(
            (first.weight == last.weight).all()
        )
        if still:
            last.weight = first.weight
        else:
            log.info("%s moves the tied embedding or head: untied to merge it", files.path)
        for config in (merged.config, merged.config.get_text_config()):
            config.tie_word_embeddings = still
    return merged


def _untie(model: nn.Module) -> None:
    """Give each module parameters of its own: merging into a shared one would move both."""
    import torch

    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if id(parameter) in seen:
                own = torch.nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                setattr(module, name, own)
            seen.add(id(parameter))


def attach_adapter(model: PreTrainedModel, files: CheckpointFiles) -> Any:
    """Raises CheckpointError where the adapter does not fit the base or is incomplete."""
    import torch
    from peft import PeftModel, get_peft_model_state_dict

    what = f"{files.path}: the adapter cannot be attached to its base"
    remedy = "; is --base the model that it was trained on?"
    with refusing(what, remedy), warnings.catch_warnings(), muted(), unmoved_caches():
        # Advice for people who train; what would be lost is checked here.
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(files.folder), is_trainable=False)
    # "auto" would ask the hub about the base that the adapter's config names.
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    found = set(files.tensors)
    if not found:  # a pickle
        found = set(torch.load(files.weights[0], map_location="cpu", weights_only=True))
    embeddings = {name for name in found - expected if name in adapted.state_dict()}
    if expected != found - embeddings:
        odd = sorted(expected ^ (found - embeddings))
        raise CheckpointError(
            f"{files.path}: {len(odd)} adapter weights do not fit the base, as "
            f"{one_line(odd[0], 120)}{remedy}"
        )
    return adapted
