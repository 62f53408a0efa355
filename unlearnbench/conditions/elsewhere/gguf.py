"""A GGUF file's weights as those of the model that it was made from: by transformers' own table of
names and its undoing of llama.cpp's order, with the levels next to each weight beside it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.gguf import damaged
from unlearnbench.checkpoints.gguf_parts import GgufFile
from unlearnbench.conditions.elsewhere.distance import Grid, Law, near_codes, near_levels
from unlearnbench.conditions.elsewhere.rope import require_rope
from unlearnbench.conditions.quantize import blocks
from unlearnbench.errors import CheckpointError, one_line

if TYPE_CHECKING:
    import torch
    from torch import nn

log = logging.getLogger("unlearnbench")

# Columns that share constants, of types that blocks.py has no more of.
_GROUPS = {"MXFP4": 32, "NVFP4": 16, "TQ1_0": 256, "TQ2_0": 256, "IQ2_XS": 16, "IQ2_S": 16}
# Rounded to words of several weights, not to the nearest level of each.
_WORDS = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"}
# Whose codes llama.cpp does not round again after it has fitted scales by an importance matrix.
_WEIGHED = {"Q4_0", "Q4_1", "Q5_0", "Q5_1"}
# Of no use to transformers, which has them from the config.
_TABLES = re.compile(
    r"rope_(freqs|factors_long|factors_short)\.weight|blk\.\d+\.rope_freqs\.weight"
)
_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}

Meet = Callable[[str, "torch.Tensor", "Grid | None", str], None]
"""(the model's name, values in fp32, the levels next to them where they are codes, the type)."""


def require_fit(file: GgufFile, config: Mapping[str, Any], model: nn.Module) -> dict[str, str]:
    """The model's name of every tensor. config: the text model's; model: without memory.

    Raises:
        CheckpointError: the file is of another architecture, of other shapes, or computes
            otherwise.
    """
    facts = dict(config)
    facts.setdefault("rope_theta", (config.get("rope_parameters") or {}).get("rope_theta"))
    for key, ours in _KEYS.items():
        said, own = file.number(key), facts.get(ours)
        if said is None or not isinstance(own, (int, float)):
            continue
        if not abs(said - own) <= 1e-5 * abs(own):  # NaN too
            raise CheckpointError(
                f"--deployed {file.path} has {key} {said:g}, and the model's {ours} is {own:g}; "
                "it is no file of this model"
            )
    require_rope(file, config)
    names = _names(file, config, model)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for key, name in names.items():
        if key not in file.tensors or name not in shapes:
            continue
        there, shape = file.tensors[key].shape, shapes[name]
        if len(shape) == len(there) <= 2 and shape not in (there, there[::-1]):
            raise CheckpointError(
                f"--deployed {file.path}: {one_line(key, 60)} has shape {there[::-1]}, "
                f"and {name} of the model {shape}; it is no file of this model"
            )
    for key in file.tensors:
        if key in names or _TABLES.fullmatch(key) or _is_merged(key):
            continue
        if re.match(r"blk\.\d+\.nextn\.", key):  # they draft tokens, and change none
            log.warning("%s: %s drafts tokens and is left out", file.path, one_line(key, 60))
            continue
        raise CheckpointError(
            f"--deployed {file.path}: the model has no place for {one_line(key, 60)}; it is no "
            "file of this model"
        )
    return names


def _is_merged(key: str) -> bool:
    return "_exps." in key


def _names(file: GgufFile, config: Mapping[str, Any], model: nn.Module) -> dict[str, str]:
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    processor = _processor(file, config)
    try:
        found = get_gguf_hf_weights_map(
            model, processor, file.architecture, int(config["num_hidden_layers"])
        )
    except Exception as error:  # as for an architecture that gguf-py does not know
        raise CheckpointError(
            f"--deployed {file.path}: its architecture {one_line(file.architecture, 40)!r} cannot "
            f"be read into this model: {one_line(error, 120)}"
        ) from None
    return dict(found)


def _processor(file: GgufFile, config: Mapping[str, Any]) -> Any:
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    kind: Any = TENSOR_PROCESSORS.get(file.architecture, TensorProcessor)
    return kind(config=dict(config))


def read(file: GgufFile, config: Mapping[str, Any], names: Mapping[str, str], meet: Meet) -> None:
    """Give every tensor to ``meet``, one after another. names: of ``require_fit``.

    Raises:
        CheckpointError: a library stumbles over the file.
    """
    import gguf
    import torch

    processor = _processor(file, config)
    weighed = any(key.startswith("quantize.imatrix.") for key in file.said)
    joined: list[dict[str, Any]] = [{"tensors": {}} for _ in range(3)]
    laws: dict[str, tuple[Law, str]] = {}
    for part in file.parts:
        try:
            tensors = gguf.GGUFReader(part).tensors
        except Exception as error:  # it has no errors of its own
            raise damaged(part, error) from None
        for tensor in tensors:
            kind = tensor.tensor_type.name
            law: Law = "none" if kind in _WORDS or (weighed and kind in _WEIGHED) else "all"
            arrays = [a for a in _levels(kind, tensor.data) if a is not None]
            made = []
            for array, place in zip(arrays, joined, strict=False):
                done = processor.process(
                    weights=array,
                    name=tensor.name,
                    tensor_key_mapping=dict(names),
                    parsed_parameters=place,
                )
                made.append(done)
            name = names.get(made[0].name) if made[0].name is not None else None
            if name is None:
                for merged in joined[0]["tensors"]:
                    laws.setdefault(merged, (law, kind))
                continue
            values, *nearby = (torch.from_numpy(one.weights.copy()) for one in made)
            meet(name, values, Grid(nearby[0], nearby[1], law) if nearby else None, kind)
    for name, values in joined[0]["tensors"].items():  # experts, of which each was one tensor
        law, kind = laws[name]
        nearby = [place["tensors"][name] for place in joined[1:] if name in place["tensors"]]
        meet(name, values, Grid(nearby[0], nearby[1], law) if len(nearby) == 2 else None, kind)


def _levels(kind: str, data: Any) -> tuple[Any, Any, Any]:
    """Values, and how far a weight may lie below and above each to be nearest it."""
    import gguf
    import numpy as np

    values = np.asarray(
        gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]), dtype=np.float32
    )
    if kind in ("F32", "F16", "BF16"):
        return values, None, None
    if kind in blocks.TYPES and not kind.startswith("IQ4"):
        flat = data.reshape(-1, data.shape[-1])
        codes = blocks.codes(kind, flat).reshape(values.shape)
        return (values, *near_codes(values, codes, blocks.TYPES[kind].group))
    group = blocks.TYPES[kind].group if kind in blocks.TYPES else _GROUPS.get(kind, 32)
    return (values, *near_levels(values, group))
