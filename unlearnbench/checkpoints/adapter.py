"""A PEFT adapter: its config checked before PEFT acts on it, and its weights attached to their base
with nothing left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles, read_json
from unlearnbench.checkpoints.limits import check_numbers, walk_json
from unlearnbench.checkpoints.load import require_finite
from unlearnbench.checkpoints.patterns import check_patterns
from unlearnbench.errors import CheckpointError, one_line
from unlearnbench.util.process import muted, unmoved_caches

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PATTERNS = (
    "target_modules",
    "exclude_modules",
    "target_parameters",
    "layers_pattern",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
)


def check_adapter_config(files: CheckpointFiles, names: Iterable[str]) -> None:
    """Check an adapter's config; ``names`` are those of the base's modules and parameters.

    Raises:
        CheckpointError: PEFT would ignore an option that is on, follow other files than the ones
            that were checked, import code, take absurd memory or never end.
    """
    config = read_json(files.folder / "adapter_config.json")
    where = f"{files.path}: adapter_config.json"
    check_numbers(config, where)
    _check_kind(config, files.path)
    _check_sizes(config, files, where)
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
    if "num_virtual_tokens" in names:  # PEFT's mark of prompt learning
        raise CheckpointError(
            f"{path}: a {kind} adapter changes prompts, not weights; it is not supported"
        )
    if config.get("alora_invocation_tokens"):  # PEFT's wrapper looks for them, layers do not
        raise CheckpointError(
            f"{path}: an adapter with alora_invocation_tokens acts only behind certain words; it "
            "is not supported"
        )
    if kind == "XLORA" or config.get("megatron_config"):
        what = "further adapters" if kind == "XLORA" else "a Python package of its choice"
        raise CheckpointError(
            f"{path}: adapter_config.json would make PEFT load {what}; it is not supported"
        )
    lost = [key for key, value in config.items() if value and key not in names]
    lost = [key for key in lost if key != "peft_version"]
    if lost:
        raise CheckpointError(
            f"{path}: the adapter uses {one_line(lost[0], 80)}, which this version of PEFT "
            "does not know; update peft"
        )


def _check_sizes(config: Mapping[str, Any], files: CheckpointFiles, where: str) -> None:
    """Ranks and repeated layers that the stored tensors bear out."""
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


def attach_adapter(model: PreTrainedModel, files: CheckpointFiles) -> Any:
    """Attach an adapter, and make sure that all of it arrived.

    Raises:
        CheckpointError: it does not fit the base, is incomplete, or needs a later PEFT.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings(), muted(), unmoved_caches():
            # Advice for people who train; what would be lost is checked here.
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, str(files.folder), is_trainable=False)
    except Exception as error:  # PEFT raises many kinds for an adapter that does not fit its base
        raise CheckpointError(
            f"{files.path}: the adapter cannot be attached to its base: {one_line(error, 200)}; "
            "is --base the model that it was trained on?"
        ) from error
    # "auto" would ask the hub about the base that the adapter's config names.
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    found = _tensor_names(files)
    embeddings = {name for name in found - expected if name in adapted.state_dict()}
    if expected != found - embeddings:
        odd = sorted(expected ^ (found - embeddings))
        raise CheckpointError(
            f"{files.path}: {len(odd)} adapter weights do not fit the base, as "
            f"{one_line(odd[0], 120)}; is --base the model that it was trained on?"
        )
    return adapted


def _tensor_names(files: CheckpointFiles) -> set[str]:
    if files.tensors:
        return set(files.tensors)
    import torch

    return set(torch.load(files.weights[0], map_location="cpu", weights_only=True))


def merge_adapter(model: PreTrainedModel, files: CheckpointFiles) -> PreTrainedModel:
    """Add an adapter's weights into its base. Raises CheckpointError as ``attach_adapter``, and
    where the sum is not finite.
    """
    merged: PreTrainedModel = attach_adapter(model, files).merge_and_unload()
    require_finite(merged, files.path)
    return merged
