"""Which type each matrix has in a file of llama.cpp's: ``Q4_K_M`` and the like are mixtures, of
which some attention values, attention outputs and down projections get more bits.

The rule is that of llama.cpp's src/llama-quant.cpp (August 2026) for dense models, and so is the
type that takes the place of one whose blocks a matrix's columns do not fill.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unlearnbench.conditions.quantize.blocks import sizes
from unlearnbench.errors import PrecisionError

# A file's name -> the type of the matrices that no rule picks out.
FILES = {
    **{"Q2_K": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K"},
    **{"Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K"},
    **{"Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS"},
}
_INSTEAD = {
    **{"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"},
    "IQ4_XS": "IQ4_NL",
}
_VALUES = ("ATTN_V", "ATTN_QKV", "ATTN_KV_B")
_TENSORS = (*_VALUES, "ATTN_Q", "ATTN_K", "ATTN_OUT", "FFN_UP", "FFN_GATE", "FFN_DOWN")
# Models of 80 layers whose key-value heads are shared: llama.cpp calls them 70B.
_LARGE, _LARGE_LAYERS = ("llama", "mistral", "qwen2"), 80


@functools.cache
def _kinds() -> dict[str, str]:
    """What gguf-py calls a matrix, by its name with the block's number as ``{bid}``."""
    from gguf import MODEL_TENSOR
    from gguf.tensor_mapping import TensorNameMap

    named = TensorNameMap.block_mappings_cfg
    return {name: kind for kind in reversed(_TENSORS) for name in named[MODEL_TENSOR[kind]]}


def place(name: str) -> tuple[str, int]:
    """What gguf-py calls a matrix, as ``ATTN_V`` (empty where it is none of those that rules pick),
    and its block's number, -1 outside of blocks.
    """
    match = re.search(r"\.(\d+)\.", name)
    if match is None:
        return "", -1
    pattern = f"{name[: match.start(1)]}{{bid}}{name[match.end(1) :]}"
    return _kinds().get(pattern, ""), int(match[1])


def tensor_name(name: str) -> str | None:
    """A matrix's name in GGUF files, as ``blk.0.attn_v.weight``; None where rules know it not."""
    from gguf import MODEL_TENSOR, TENSOR_NAMES

    kind, block = place(name)
    if not kind:
        return None
    return TENSOR_NAMES[MODEL_TENSOR[kind]].format(bid=block) + ".weight"


def types(
    file: str, names: Sequence[str], config: Mapping[str, Any], weighed: bool = False
) -> dict[str, str]:
    """The type of every matrix of a model before columns are looked at. names: its linear layers
    but the output head; config: of its text model; weighed: with an importance matrix.

    Raises:
        PrecisionError: llama.cpp has a rule of its own for this kind of model.
    """
    model = str(config.get("model_type"))
    if model == "falcon":
        raise PrecisionError("llama.cpp mixes types by another rule for Falcon; use gguf-q4_0")
    heads = config.get("num_attention_heads") or 1
    shared = heads // (config.get("num_key_value_heads") or heads)
    places = {name: place(name) for name in names}
    blocks = 1 + max((block for _, block in places.values()), default=-1)
    large = model in _LARGE and blocks == _LARGE_LAYERS and shared > 1
    values = sorted(block for kind, block in places.values() if kind in _VALUES)
    found = {}
    for name, (kind, block) in places.items():
        if kind in _VALUES:
            found[name] = _for_values(file, values.index(block), len(values), shared)
            if large and found[name] in ("Q3_K", "Q4_K"):
                found[name] = "Q5_K"
        elif kind == "FFN_DOWN":
            found[name] = _for_down(file, block, blocks, weighed)
        elif kind == "ATTN_OUT":
            found[name] = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(
                file, FILES[file]
            )
        else:
            found[name] = FILES[file]
    return found


def fitting(kind: str, columns: int) -> str:
    """The type, or what llama.cpp takes in its place where columns make no blocks of it."""
    return kind if columns % sizes(kind)[0] == 0 else _INSTEAD.get(kind, kind)


def _more(i: int, count: int) -> bool:
    """Whether the i-th of so many layers is among those that get more bits."""
    return i < count // 8 or i >= 7 * count // 8 or (i - count // 8) % 3 == 2


def _for_values(file: str, i: int, count: int, shared: int) -> str:
    """i: among the matrices that make attention values, fused ones too; shared: queries' heads for
    each of keys and values.
    """
    if file in ("Q4_K_M", "Q5_K_M") and _more(i, count):
        return "Q6_K"
    if file == "Q2_K":
        return "Q4_K" if shared >= 4 else "Q3_K"
    if file == "Q3_K_M":
        return "Q5_K" if i < 2 else "Q4_K"
    more = file == "Q3_K_L" or (file == "Q4_K_S" and i < 4)
    return "Q5_K" if more or (file.startswith("IQ4") and shared >= 4) else FILES[file]


def _for_down(file: str, i: int, count: int, weighed: bool) -> str:
    if file in ("Q4_K_M", "Q5_K_M") and _more(i, count):
        return "Q6_K"
    if file == "Q2_K":
        return "Q3_K"
    if file == "Q3_K_M":
        return "Q5_K" if i < count // 16 else "Q4_K"
    first = i < count // 8 and (file == "Q4_K_S" or (file.startswith("IQ4") and not weighed))
    return "Q5_K" if first or file == "Q3_K_L" else FILES[file]
