"""The scheme of a checkpoint that is quantized already, as its ``config.json`` states it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles
from unlearnbench.checkpoints.load import from_pretrained
from unlearnbench.errors import CheckpointError, PrecisionError, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class StoredScheme:
    """How a checkpoint's weights are packed. method: transformers' ``quant_method``. group: columns
    (or weights of a block) that share constants; None for an output channel or not stated.
    """

    method: str
    bits: float
    text: str
    group: int | None = None

    @property
    def package(self) -> tuple[str, str]:
        """The package that unpacks it, as imported, and what installs it."""
        return _PACKAGES[self.method]


_PACKAGES = {
    "gptq": ("gptqmodel", "pip install 'unlearnbench[gptq]'"),
    "awq": ("gptqmodel", "pip install 'unlearnbench[gptq]'"),
    "bitsandbytes": ("bitsandbytes", "pip install bitsandbytes"),
    "compressed-tensors": (
        "compressed_tensors",
        "pip install 'unlearnbench[compressed-tensors]'",
    ),
}


def stored_scheme(config: Facts, path: str) -> StoredScheme | None:
    """Read ``quantization_config`` from a checkpoint's raw config; None where there is none.

    Raises:
        PrecisionError: a scheme that cannot be loaded here.
        CheckpointError: it does not say what it is.
    """
    facts = config.get("quantization_config", config.get("compression_config"))
    if facts is None:
        return None
    if not isinstance(facts, dict):
        raise CheckpointError(f"{path}: quantization_config in config.json is no object")
    method = facts.get("quant_method")
    if method is None and ("load_in_4bit" in facts or "load_in_8bit" in facts):
        method = "bitsandbytes"  # as older versions of transformers wrote it
    read = _READERS.get(method) if isinstance(method, str) else None
    if read is None:
        raise PrecisionError(
            f"{path} is quantized already, by {one_line(method, 40)!r}, which cannot be loaded "
            f"here; known: {', '.join(_READERS)}. Give the unquantized checkpoint, which "
            "unlearnbench quantizes itself"
        )
    try:
        scheme = read(facts)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: quantization_config in config.json does not state the scheme of "
            f"{method} ({one_line(error, 80)})"
        ) from None
    if not 1 <= scheme.bits <= 16:
        raise CheckpointError(
            f"{path}: quantization_config states {one_line(scheme.bits, 20)} bits"
        )
    return scheme


def _gptq(facts: Facts) -> StoredScheme:
    bits, group = int(facts["bits"]), int(facts.get("group_size", -1))
    kind = "symmetric" if facts.get("sym", True) else "with zero point"
    order = ", columns reordered" if facts.get("desc_act") else ""
    return StoredScheme("gptq", bits, f"GPTQ, {kind} {_per(group)}{order}", _group(group))


def _awq(facts: Facts) -> StoredScheme:
    bits = int(facts.get("bits", facts.get("w_bit", 0)))
    group = int(facts.get("group_size", facts.get("q_group_size", -1)))
    kind = "with zero point" if facts.get("zero_point", True) else "symmetric"
    return StoredScheme("awq", bits, f"AWQ, {kind} {_per(group)}", _group(group))


def _bitsandbytes(facts: Facts) -> StoredScheme:
    if facts.get("load_in_8bit"):
        return StoredScheme("bitsandbytes", 8, "LLM.int8(), activations quantized too")
    if not facts.get("load_in_4bit"):
        raise ValueError("neither load_in_4bit nor load_in_8bit")
    kind = str(facts.get("bnb_4bit_quant_type", "fp4"))
    if kind not in ("fp4", "nf4"):
        raise ValueError(f"bnb_4bit_quant_type {one_line(kind, 20)}")
    double = ", its scales in 8 bits" if facts.get("bnb_4bit_use_double_quant") else ""
    return StoredScheme("bitsandbytes", 4, f"{kind.upper()}, absmax per block{double}", 64)


def _compressed_tensors(facts: Facts) -> StoredScheme:
    parts = [dict(group) for group in facts["config_groups"].values()]
    weights = [dict(part["weights"]) for part in parts]
    bits = max(int(weight["num_bits"]) for weight in weights)
    first = weights[0]
    group = first.get("group_size") if first.get("strategy") == "group" else None
    size = int(group) if group else None
    kind = "symmetric" if first.get("symmetric", True) else "with zero point"
    text = f"compressed-tensors, {one_line(first.get('type', 'int'), 20)} {kind} {_per(size or -1)}"
    if any(part.get("input_activations") for part in parts):
        text += ", activations quantized too"
    if len({int(weight["num_bits"]) for weight in weights}) > 1:
        text += ", other layers in fewer bits"
    return StoredScheme("compressed-tensors", bits, text, size)


def _per(group: int) -> str:
    return f"per group of {group} columns" if group > 0 else "per output channel"


def _group(group: int) -> int | None:
    return group if group > 0 else None


_READERS: dict[str, Callable[[Facts], StoredScheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
}


def load_packed(
    files: CheckpointFiles,
    config: PretrainedConfig,
    trust_remote_code: bool,
    dtype: torch.dtype,
    device: str,
) -> PreTrainedModel:
    """Load a checkpoint that is quantized already, as it is, with the libraries that unpack it.

    Raises:
        CheckpointError: weights are missing, of the wrong shape, damaged or not finite.
    """
    config = copy.deepcopy(config)
    config.quantization_config = _settings(config, dtype, device)
    where = device if device == "auto" else {"": device}
    extra = {"use_safetensors": True, "dtype": dtype, "device_map": where}
    model = from_pretrained(files, config, trust_remote_code, extra)
    return model.eval()  # type: ignore[no-any-return]


def _settings(config: Any, dtype: torch.dtype, device: str) -> Any:
    """The checkpoint's own scheme; how it is computed is ours to say."""
    found = config.quantization_config
    facts = dict(found if isinstance(found, dict) else found.to_dict())
    method = str(getattr(facts.get("quant_method"), "value", facts.get("quant_method")))
    if method == "gptq":
        facts["backend"] = "gptq_torch"
    elif method == "awq":
        facts["backend"] = "auto" if device == "cpu" else "awq_torch"
    elif facts.get("load_in_4bit"):
        facts["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    return facts
