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
    "fp8": ("transformers", "pip install transformers"),
    "mxfp4": ("transformers", "pip install transformers"),
}


@dataclass(frozen=True)
class StoredScheme:
    """How a checkpoint's weights are packed."""

    method: str
    """As transformers calls it (``quant_method``), or gguf."""
    bits: float
    """Of a weight."""
    text: str
    """The scheme in words, for results and messages."""
    name: str
    """The scheme as conditions are named, ``gptq-int4-g128``; the precision's own name where that
    is what it is."""
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
        if method == "compressed-tensors":
            scheme = _compressed(facts)
        else:
            own = {"bitsandbytes": _bitsandbytes, "fp8": _fp8, "mxfp4": _mxfp4}
            read = own.get(method, _integers)
            scheme = read(facts)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        said = f"does not state the scheme of {method} ({one_line(error, 80)})"
        raise CheckpointError(f"{where} {said}") from None
    if not 1 <= scheme.bits <= 16:
        raise CheckpointError(f"{where} states {one_line(scheme.bits, 20)} bits")
    return scheme


def _bitsandbytes(facts: Mapping[str, Any]) -> StoredScheme:
    if facts.get("load_in_8bit"):
        text = "LLM.int8(), activations quantized too"
        return StoredScheme("bitsandbytes", 8, text, "bnb-int8")
    if not facts.get("load_in_4bit"):
        raise ValueError("neither load_in_4bit nor load_in_8bit")
    kind = str(facts.get("bnb_4bit_quant_type", "fp4"))
    if kind not in ("fp4", "nf4"):
        raise ValueError(f"bnb_4bit_quant_type {one_line(kind, 20)}")
    double = bool(facts.get("bnb_4bit_use_double_quant"))
    text = f"{kind.upper()}, absmax per block" + (", its scales in 8 bits" if double else "")
    return StoredScheme("bitsandbytes", 4, text, f"bnb-{kind}" + ("-dq" if double else ""), 64)


def _fp8(facts: Mapping[str, Any]) -> StoredScheme:
    """FP8 as transformers stores it (DeepSeek-V3's and Qwen3's own): a scale for each block."""
    block = facts.get("weight_block_size")
    if block is None:
        return StoredScheme("fp8", 8, "FP8 E4M3 per matrix", "fp8-e4m3-tensor")
    rows, columns = map(int, block)
    name = f"fp8-e4m3-b{columns}" + ("" if rows == columns else f"x{rows}")
    return StoredScheme("fp8", 8, f"FP8 E4M3 {_block(rows, columns)}", name, columns)


def _mxfp4(_: Mapping[str, Any]) -> StoredScheme:
    """As gpt-oss stores its experts."""
    text = "FP4 E2M1, a power of two per group of 32 columns"
    return StoredScheme("mxfp4", 4, text, "mxfp4", 32)


def _integers(facts: Mapping[str, Any]) -> StoredScheme:
    """Integers on an even grid, of each output channel where ``group`` is not above 0."""
    method, more = str(facts["quant_method"]), ""
    if method == "gptq":
        bits, symmetric = int(facts["bits"]), facts.get("sym", True)
        group = int(facts.get("group_size", -1))
        more = ", columns reordered" if facts.get("desc_act") else ""
    else:
        symmetric = not facts.get("zero_point", True)
        bits = int(facts.get("bits", facts.get("w_bit", 0)))
        group = int(facts.get("group_size", facts.get("q_group_size", -1)))
    kind = "symmetric" if symmetric else "with zero point"
    per = f"per group of {group} columns" if group > 0 else "per output channel"
    size = group if group > 0 else None
    asym = "" if symmetric or method == "awq" else "-asym"
    name = f"{method}-int{bits}" + (f"-g{group}" if size else "") + asym
    return StoredScheme(method, bits, f"{method.upper()}, {kind} {per}{more}", name, size)


def _compressed(facts: Mapping[str, Any]) -> StoredScheme:
    """What compressed-tensors describes, in groups of layers of which the widest is named."""
    parts = [dict(part) for part in facts["config_groups"].values()]
    part = max(parts, key=lambda part: int(part["weights"]["num_bits"]))
    weights, inputs, more = dict(part["weights"]), part.get("input_activations"), ""
    widths = {int(part["weights"]["num_bits"]) for part in parts}
    columns, per = shared(weights)
    if any(part.get("input_activations") for part in parts):
        more += ", activations quantized too"
    if len(widths) > 1:
        more += ", other layers in fewer bits"
    symmetric = weights.get("symmetric", True)
    kind = "symmetric" if symmetric else "with zero point"
    sort, bits = one_line(weights.get("type", "int"), 20), max(widths)
    text = f"compressed-tensors, {sort} {kind} {per}{more}"
    name = _compressed_name(sort, bits, columns, per, bool(symmetric))
    if inputs:
        how = "dynamic" if dict(inputs).get("dynamic") is True else "static"
        name += f"-a{int(dict(inputs)['num_bits'])}-{how}"
    name = {"ct-int8-a8-dynamic": "int8-w8a8", "fp8-e4m3-a8-dynamic": "fp8-e4m3-dynamic"}.get(
        name, name
    )
    return StoredScheme("compressed-tensors", bits, text, name, columns)


def _compressed_name(sort: str, bits: int, columns: int | None, per: str, symmetric: bool) -> str:
    """The precision's own name where there is one, else what tells it apart from others."""
    floats = {(4, 16): "nvfp4", (4, 32): "mxfp4", (8, 32): "mxfp8"}
    if sort == "float" and "group" in per and (bits, columns) in floats:
        return floats[bits, columns or 0]
    size = f"-b{columns}" if "block" in per else f"-g{columns}" if columns else ""
    if sort == "float":
        size += "-tensor" if "matrix" in per else ""
        return f"fp8-e4m3{size}" if bits == 8 else f"ct-fp{bits}{size}"
    size += "-tensor" if "matrix" in per else ""
    return f"ct-int{bits}{size}" + ("" if symmetric else "-asym")


def _block(rows: int, columns: int) -> str:
    return f"per block of {rows} rows and {columns} columns"


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
        return columns, _block(rows, columns)
    words = {"channel": "per output channel", "tensor": "per matrix"}
    if strategy not in words:
        raise ValueError(f"strategy {one_line(strategy, 20)}")
    return None, words[strategy]
