"""The scheme of a checkpoint that is quantized already, as its ``config.json`` states it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import SCHEMES, CheckpointFiles
from unlearnbench.checkpoints.load import device_map, from_pretrained
from unlearnbench.errors import CheckpointError, PrecisionError, one_line

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class StoredScheme:
    """How a checkpoint's weights are packed."""

    method: str
    """As transformers calls it (``quant_method``)."""
    bits: float
    """Of a weight."""
    text: str
    """The scheme in words, for results and messages."""
    group: int | None = None
    """Columns (or weights of a block) that share constants; None for an output channel."""

    @property
    def package(self) -> tuple[str, str]:
        """The package that unpacks it, as imported, and what installs it."""
        return _PACKAGES[self.method]


_PACKAGES = {
    "gptq": ("gptqmodel", "pip install 'unlearnbench[gptq]'"),
    "awq": ("gptqmodel", "pip install 'unlearnbench[gptq]'"),
    "bitsandbytes": ("bitsandbytes", "pip install bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "pip install 'unlearnbench[compressed-tensors]'"),
}


def stored_scheme(config: Facts, path: str) -> StoredScheme | None:
    """Read ``quantization_config`` from a checkpoint's raw config; None where there is none.

    Raises:
        PrecisionError: a scheme that cannot be loaded here.
        CheckpointError: it does not say what it is.
    """
    facts = next((config[key] for key in SCHEMES if config.get(key) is not None), None)
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
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CheckpointError(
            f"{path}: quantization_config in config.json does not state the scheme of "
            f"{method} ({one_line(error, 80)})"
        ) from None
    if not 1 <= scheme.bits <= 16:
        raise CheckpointError(
            f"{path}: quantization_config states {one_line(scheme.bits, 20)} bits"
        )
    return scheme


def _integers(
    method: str, title: str, bits: int, group: int, symmetric: object, more: str = ""
) -> StoredScheme:
    """Integers on an even grid; ``group`` is not above 0 for a grid of each output channel."""
    kind = "symmetric" if symmetric else "with zero point"
    per = f"per group of {group} columns" if group > 0 else "per output channel"
    size = group if group > 0 else None
    return StoredScheme(method, bits, f"{title} {kind} {per}{more}", size)


def _gptq(facts: Facts) -> StoredScheme:
    group, order = int(facts.get("group_size", -1)), facts.get("desc_act")
    more = ", columns reordered" if order else ""
    return _integers("gptq", "GPTQ,", int(facts["bits"]), group, facts.get("sym", True), more)


def _awq(facts: Facts) -> StoredScheme:
    bits = int(facts.get("bits", facts.get("w_bit", 0)))
    group = int(facts.get("group_size", facts.get("q_group_size", -1)))
    return _integers("awq", "AWQ,", bits, group, not facts.get("zero_point", True))


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
    bits = {int(weight["num_bits"]) for weight in weights}
    first = weights[0]
    group = first.get("group_size") if first.get("strategy") == "group" else None
    more = ""
    if any(part.get("input_activations") for part in parts):
        more += ", activations quantized too"
    if len(bits) > 1:
        more += ", other layers in fewer bits"
    title = f"compressed-tensors, {one_line(first.get('type', 'int'), 20)}"
    symmetric = first.get("symmetric", True)
    return _integers("compressed-tensors", title, max(bits), int(group or -1), symmetric, more)


_READERS: dict[str, Callable[[Facts], StoredScheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
}


def load_packed(
    files: CheckpointFiles,
    config: Any,
    trust_remote_code: bool,
    dtype: torch.dtype,
    device: str,
) -> PreTrainedModel:
    """Load a checkpoint that is quantized already, as it is, with the libraries that unpack it.
    Raises CheckpointError as ``from_pretrained``.
    """
    config = copy.deepcopy(config)
    stated = config.quantization_config
    facts = dict(stated if isinstance(stated, dict) else stated.to_dict())
    method = str(getattr(facts.get("quant_method"), "value", facts.get("quant_method")))
    # The scheme is the checkpoint's own; how it is computed is ours to say.
    if method == "gptq":
        facts["backend"] = "gptq_torch"
    elif method == "awq":
        facts["backend"] = "auto" if device == "cpu" else "awq_torch"
    elif facts.get("load_in_4bit"):
        facts["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    config.quantization_config = facts
    extra = {"use_safetensors": True, "dtype": dtype, "device_map": device_map(device)}
    model = from_pretrained(files, config, trust_remote_code, extra)
    return model.eval()  # type: ignore[no-any-return]
