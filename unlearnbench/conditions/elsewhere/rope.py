"""How positions turn: what a GGUF file says of it against the model's config. llama.cpp takes it
from the file, and the model into which the weights go from its own config.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from unlearnbench.checkpoints.gguf import damaged
from unlearnbench.checkpoints.gguf_parts import GgufFile
from unlearnbench.errors import CheckpointError, one_line

log = logging.getLogger("unlearnbench")

_CLOSE = 1e-4
# transformers' name -> the types that llama.cpp's converter may state; the others are in tables.
_TYPES = {
    "default": ("none",),
    "linear": ("linear",),
    "yarn": ("yarn",),
    "llama3": ("none",),
    "longrope": ("none", "longrope"),
}
# Where YaRN's ramp begins and ends, by default there and in transformers.
_YARN = {"beta_fast": 32.0, "beta_slow": 1.0}


def require_rope(file: GgufFile, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where positions turn otherwise, or the config does not say how. config:
    the text model's.
    """
    own = config.get("rope_parameters") or {}
    own = own.get("full_attention", own) or {}  # of models whose layers differ in it
    kind = own.get("rope_type") or own.get("type") or "default"
    if kind not in _TYPES:
        log.warning("%s: how it scales positions is not compared (%s)", file.path, kind)
        return
    try:
        if kind == "yarn":
            own = {**own, **_yarn_due(own, config)}
        tables = _tables_due(kind, own, config)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(
            f"the model's config does not say how {kind} scales positions ({one_line(error, 60)})"
        ) from None
    said, factor = _scaled(file)
    if said not in _TYPES[kind]:
        raise _otherwise(file, f"rope.scaling.type {one_line(said, 40)}", f"rope_type {kind}")
    context = file.number("rope.scaling.original_context_length")
    for key, there, ours in (
        ("factor", file.number("rope.scaling.factor") if said == "longrope" else factor, "factor"),
        ("original_context_length", context, "original_max_position_embeddings"),
    ):
        here = own.get(ours)
        if said == "none" or there is None or not isinstance(here, (int, float)):
            continue
        if _differ(there, here):
            raise _otherwise(file, f"rope.scaling.{key} {there:g}", f"{ours} {here:g}")
    if kind == "yarn":
        _require_yarn(file, own)
    for name, due in tables.items():
        _require_table(file, name, due)


def _scaled(file: GgufFile) -> tuple[str, float]:
    """How and by how much, with llama.cpp's defaults: a factor without a type is linear, and
    without a factor nothing is scaled.
    """
    said = str(file.said.get(f"{file.architecture}.rope.scaling.type", "linear"))
    factor = file.number("rope.scaling.factor")
    factor = file.number("rope.scale_linear") if factor is None else factor
    factor = factor or 1.0
    return ("none" if said == "linear" and factor == 1 else said), factor


def _yarn_due(own: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, float]:
    """YaRN's numbers as transformers takes them where a config leaves some out: by how much
    positions and attention are scaled, and where the ramp begins and ends.
    """
    factor, longest = own.get("factor"), config.get("max_position_embeddings") or 0
    if factor is None:
        key = "original_max_position_embeddings"
        factor = float(longest) / float(config.get(key, own.get(key, longest)))
    found = {key: float(own.get(key) or default) for key, default in _YARN.items()}
    found |= {"factor": float(factor), "mscale_all_dim": float(own.get("mscale_all_dim") or 0)}
    stated, scales = own.get("attention_factor"), (own.get("mscale"), found["mscale_all_dim"])
    one, other = (_attention(found["factor"], float(m or 0)) for m in scales)
    if stated is None:
        stated = one / other if all(scales) else _attention(found["factor"])
    return found | {"attention_factor": float(stated)}


def _attention(factor: float, scale: float = 1.0) -> float:
    return 1 + 0.1 * scale * math.log(max(1.0, factor))


def _require_yarn(file: GgufFile, own: Mapping[str, Any]) -> None:
    """Hold YaRN's lesser settings: where its ramp begins and ends, and by how much attention is
    scaled. What a file does not say has llama.cpp's default there. own: see ``_yarn_due``.
    """
    for key, default in _YARN.items():
        there, here = file.number(f"rope.scaling.yarn_{key}"), own[key]
        there = default if there is None else there
        if _differ(there, here):
            raise _otherwise(file, f"rope.scaling.yarn_{key} {there:g}", f"{key} {here:g}")
    if not own.get("truncate", True):
        log.warning("%s: llama.cpp has no YaRN without truncation, as the model has", file.path)
    said, by = file.number("rope.scaling.yarn_attn_factor"), _attention(own["factor"])
    log_mul = file.number("rope.scaling.yarn_log_multiplier")
    if log_mul:  # DeepSeek's, a tenth of mscale_all_dim; with it alone attention is scaled by 1
        here = own["mscale_all_dim"]
        if _differ(log_mul, here) and _differ(10 * log_mul, here):
            theirs = f"rope.scaling.yarn_log_multiplier {log_mul:g}"
            raise _otherwise(file, theirs, f"mscale_all_dim {here:g}")
        by = 1.0
    # Converters write transformers' own number, and llama.cpp multiplies what it reads.
    held, here = [by] if said is None else [said, said * by], own["attention_factor"]
    if all(_differ(there, here) for there in held):
        raise _otherwise(
            file,
            f"an attention factor of {held[-1]:g} (rope.scaling.yarn_attn_factor)",
            f"{here:g}",
        )


def _tables_due(
    kind: str, own: Mapping[str, Any], config: Mapping[str, Any]
) -> Mapping[str, Sequence[float] | None]:
    """The factors of a file's tables; None: all are 1, or there is none."""
    if kind == "longrope":
        return {
            f"rope_factors_{length}.weight": [float(x) for x in own[f"{length}_factor"]]
            for length in ("long", "short")
        }
    if kind == "llama3":
        return {"rope_freqs.weight": llama3_table(own, _width(config))}
    return {"rope_freqs.weight": None}


def llama3_table(own: Mapping[str, Any], width: int) -> list[float]:
    """By how much each pair of a head's numbers turns slower. Source: Llama 3.1's model card."""
    base, factor = float(own["rope_theta"]), float(own["factor"])
    low, high = float(own["low_freq_factor"]), float(own["high_freq_factor"])
    context, found = float(own["original_max_position_embeddings"]), []
    for pair in range(width // 2):
        turns = context / (2 * math.pi * base ** (2 * pair / width))  # within the context
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - share) / factor + share))
    return found


def _width(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _require_table(file: GgufFile, name: str, due: Sequence[float] | None) -> None:
    """Hold a table of factors against those that are due; see ``_tables_due``."""
    if name not in file.tensors:
        if due is None:
            return
        raise _otherwise(file, f"no {name}", "positions that turn by its factors")
    values = _table(file, name)
    wanted = [1.0] * len(values) if due is None else list(due)
    odd = [n for n, pair in enumerate(zip(values, wanted, strict=False)) if _differ(*pair)]
    if not values or len(values) != len(wanted):
        raise _otherwise(file, f"{len(values)} factors in {name}", f"{len(wanted) or 'none'}")
    if odd:
        raise _otherwise(
            file,
            f"{len(values)} factors in {name}, of which number {odd[0]} is {values[odd[0]]:g}",
            f"{len(wanted)}, of which it is {wanted[odd[0]]:g}",
        )


def _differ(one: float, other: float) -> bool:
    return not abs(one - other) <= _CLOSE * abs(other)


def _table(file: GgufFile, name: str) -> list[float]:
    import gguf

    for part in file.parts:
        try:
            tensors = gguf.GGUFReader(part).tensors
        except Exception as error:  # it has no errors of its own
            raise damaged(part, error) from None
        for tensor in tensors:
            if tensor.name == name:
                found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
                return [float(x) for x in found.reshape(-1)]
    return []


def _otherwise(file: GgufFile, there: str, here: str) -> CheckpointError:
    return CheckpointError(
        f"--deployed {file.path} has {there}, and the model's config {here}: positions turn "
        "otherwise there; it is no file of this model"
    )
