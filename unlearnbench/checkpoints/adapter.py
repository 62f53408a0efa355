"""``adapter_config.json``, checked before PEFT acts on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from unlearnbench.checkpoints.counts import check_numbers, walk_json
from unlearnbench.checkpoints.find import CheckpointFiles, read_json
from unlearnbench.checkpoints.limits import Stored, stored_weights
from unlearnbench.checkpoints.patterns import check_patterns, patterns_in
from unlearnbench.errors import CheckpointError, one_line

_PATTERNS = (
    *("target_modules", "exclude_modules", "target_parameters", "layers_pattern"),
    *("modules_to_save", "rank_pattern", "alpha_pattern"),
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
    _check_sizes(config, stored_weights(files), where)
    chosen = {key: config[key] for key in _PATTERNS if config.get(key)}
    check_patterns(patterns_in(list(chosen.values())), names, where)


def _check_kind(config: Mapping[str, Any], path: str) -> None:
    """PEFT ignores options that it does not know; one that is on would be missing in the model."""
    from dataclasses import fields

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


def _check_sizes(config: Mapping[str, Any], stored: Stored, where: str) -> None:
    for key, value in walk_json({"r": config.get("r"), "rank": config.get("rank_pattern")}):
        if isinstance(value, int) and value > max(stored.longest, 1):
            raise CheckpointError(
                f"{where} has {key} {value}, and no stored tensor is longer than {stored.longest}; "
                "refused before memory is taken"
            )
    copies = config.get("layer_replication")
    ends = [value for _, value in walk_json(copies) if isinstance(value, int)]
    if copies and sum(map(abs, ends)) > max(stored.tensors, 1) ** 2:
        raise CheckpointError(
            f"{where} has a layer_replication of more layers than its {stored.tensors} tensors "
            "can be for; refused"
        )
