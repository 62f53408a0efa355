"""The scheme of a checkpoint that is quantized already, as its ``config.json`` states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnbench.checkpoints.find import SCHEMES
from unlearnbench.errors import CheckpointError, PrecisionError, one_line

_PACKAGES = {
    "gptq": ("gptqmodel", "pip install 'unlearnbench[gptq]'"),
    "awq": ("gptqmodel", "pip install 'unlearnbench[gptq]'"),
    "bitsandbytes": ("bitsandbytes", "pip install bitsandbytes"),
    "compressed-tensors": ("compressed_tensors", "pip install 'unlearnbench[compressed-tensors]'"),
}


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
    """Columns (or weights of a block) that share constants; None for a whole row."""

    @property
    def package(self) -> tuple[str, str]:
        """The package that unpacks it, as imported, and what installs it."""
        return _PACKAGES[self.method]


def stored_scheme(config: Mapping[str, Any], path: str) -> StoredScheme | None:
    """Of a raw ``config.json``, if any; PrecisionError for one that cannot be loaded here,
    CheckpointError for one that does not say what it is.
    """
    facts = next((config[key] for key in SCHEMES if config.get(key) is not None), None)
    if facts is None:
        return None
    where = f"{path}: quantization_config in config.json"
    if not isinstance(facts, dict):
        raise CheckpointError(f"{where} is no object")
    method = facts.get("quant_method")
    if method is None and ("load_in_4bit" in facts or "load_in_8bit" in facts):
        method = "bitsandbytes"  # as older versions of transformers wrote it
    if not isinstance(method, str) or method not in _PACKAGES:
        raise PrecisionError(
            f"{path} is quantized already, by {one_line(method, 40)!r}, which cannot be loaded "
            f"here; known: {', '.join(_PACKAGES)}. Give the unquantized checkpoint, which "
            "unlearnbench quantizes itself"
        )
    try:
        scheme = _bitsandbytes(facts) if method == "bitsandbytes" else _integers(method, facts)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"does not state the scheme of {method} ({one_line(error, 80)})"
        raise CheckpointError(f"{where} {said}") from None
    if not 1 <= scheme.bits <= 16:
        raise CheckpointError(f"{where} states {one_line(scheme.bits, 20)} bits")
    return scheme


def _bitsandbytes(facts: Mapping[str, Any]) -> StoredScheme:
    if facts.get("load_in_8bit"):
        return StoredScheme("bitsandbytes", 8, "LLM.int8(), activations quantized too")
    if not facts.get("load_in_4bit"):
        raise ValueError("neither load_in_4bit nor load_in_8bit")
    kind = str(facts.get("bnb_4bit_quant_type", "fp4"))
    if kind not in ("fp4", "nf4"):
        raise ValueError(f"bnb_4bit_quant_type {one_line(kind, 20)}")
    double = ", its scales in 8 bits" if facts.get("bnb_4bit_use_double_quant") else ""
    return StoredScheme("bitsandbytes", 4, f"{kind.upper()}, absmax per block{double}", 64)


def _integers(method: str, facts: Mapping[str, Any]) -> StoredScheme:
    """Integers on an even grid, of each output channel where ``group`` is not above 0."""
    more = ""
    if method == "gptq":
        title, bits, symmetric = "GPTQ,", int(facts["bits"]), facts.get("sym", True)
        group = int(facts.get("group_size", -1))
        more = ", columns reordered" if facts.get("desc_act") else ""
    elif method == "awq":
        title, symmetric = "AWQ,", not facts.get("zero_point", True)
        bits = int(facts.get("bits", facts.get("w_bit", 0)))
        group = int(facts.get("group_size", facts.get("q_group_size", -1)))
    else:
        parts = [dict(part) for part in facts["config_groups"].values()]
        weights = [dict(part["weights"]) for part in parts]
        first, widths = weights[0], {int(weight["num_bits"]) for weight in weights}
        title = f"compressed-tensors, {one_line(first.get('type', 'int'), 20)}"
        bits, symmetric = max(widths), first.get("symmetric", True)
        columns, per = shared(first)
        if any(part.get("input_activations") for part in parts):
            more += ", activations quantized too"
        if len(widths) > 1:
            more += ", other layers in fewer bits"
        kind = "symmetric" if symmetric else "with zero point"
        return StoredScheme(method, bits, f"{title} {kind} {per}{more}", columns)
    kind = "symmetric" if symmetric else "with zero point"
    per = f"per group of {group} columns" if group > 0 else "per output channel"
    return StoredScheme(method, bits, f"{title} {kind} {per}{more}", group if group > 0 else None)


def shared(weights: Mapping[str, Any]) -> tuple[int | None, str]:
    """Of compressed-tensors' scheme for weights: how many columns of a row share constants (None:
    all), and which weights do, in words. ValueError for a strategy that is not known.
    """
    strategy, size = weights.get("strategy"), weights.get("group_size")
    if strategy is None:
        strategy = "group" if size and size > 0 else "channel"
    if strategy in ("group", "tensor_group"):  # the latter's scales have one of their own
        return int(size or 0), f"per group of {int(size or 0)} columns"
    if strategy == "block":
        rows, columns = map(int, weights["block_structure"])
        return columns, f"per block of {rows} rows and {columns} columns"
    words = {"channel": "per output channel", "tensor": "per matrix"}
    if strategy not in words:
        raise ValueError(f"strategy {one_line(strategy, 20)}")
    return None, words[strategy]
