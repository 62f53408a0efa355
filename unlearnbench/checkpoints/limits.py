"""What a config may ask for: numbers that the stored weights and this machine bear out.

Libraries believe a config: a layer count of 10^9 makes lists of that length, a width of 10^6 makes
matrices. Everything here is checked before anything of that size is made.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.counts import check_numbers, walk_json
from unlearnbench.checkpoints.find import CheckpointFiles
from unlearnbench.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Buffers are not stored: causal masks, tables of positions. The largest in use are some 100 MB.
_BUFFERS = 256 * 2**20
_LAYERS = re.compile(r"^(num_hidden_layers|n_layers?|num_layers)$")
# Weights a stored byte: 1 bit each, packed. A tied head is stored once and counted twice.
_PACKED, _TIED = 8, 2
_SLACK = 2**20
_GIB = 2**30


@dataclass(frozen=True)
class Stored:
    """What the headers of the weight files say. ``largest``: weights of the largest tensor;
    ``longest``: the largest dimension of any.
    """

    tensors: int
    elements: int
    largest: int
    longest: int


def stored_weights(files: CheckpointFiles) -> Stored:
    """Read it from the headers. Of a pickle, whose inside is not looked at, no more than a bound
    is known: a weight a byte.
    """
    from safetensors import safe_open

    if any(path.suffix != ".safetensors" for path in files.weights):
        return Stored(2**16, files.size, files.size, files.size)
    shapes: list[list[int]] = []
    for path in files.weights:
        with safe_open(path, framework="numpy") as file:
            shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    counts = [math.prod(shape) for shape in shapes]
    longest = max((n for shape in shapes for n in shape), default=0)
    return Stored(len(shapes), sum(counts), max(counts, default=0), longest)


def check_config(raw: Mapping[str, object], tensors: int, path: str) -> None:
    """Check a raw ``config.json`` before a library reads it. ``tensors``: how many are stored.

    Raises:
        CheckpointError: a number is absurd, or a key would make a library load other weights than
            the ones that were checked and hashed, or code from a hub.
    """
    check_numbers(raw, f"{path}: config.json")
    for key, value in walk_json(raw):
        if key == "transformers_weights" and value is not None:
            raise CheckpointError(
                f"{path}: config.json has transformers_weights, which would load "
                f"{one_line(value, 80)} in place of the weights that were checked; remove it"
            )
        if _LAYERS.search(key) and isinstance(value, int) and value > max(tensors, 1):
            raise _other_layers(path, key, value, tensors)
    for part in (raw, raw.get("text_config")):
        for key, value in part.items() if isinstance(part, Mapping) else ():
            if _LAYERS.search(key) and isinstance(value, int) and value < 1:
                raise _other_layers(path, key, value, tensors)
    for key, value in _implementations(raw):
        if re.search(r"[/:|@\\]", value):
            raise CheckpointError(
                f"{path}: config.json has {one_line(key, 60)} {one_line(value, 80)}, code from a "
                "hub; refused: remove it"
            )


def _other_layers(path: str, key: str, value: int, tensors: int) -> CheckpointError:
    return CheckpointError(
        f"{path}: config.json has {key} {value}, and {tensors} tensors are stored; a model of so "
        "many layers is not what was saved"
    )


def _implementations(raw: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Every text below a key that chooses the code of a part."""
    todo: list[object] = [raw]
    while todo:
        part = todo.pop()
        if isinstance(part, Mapping):
            for key, value in part.items():
                todo.append(value)
                if key.endswith("_implementation"):
                    yield from ((key, v) for _, v in walk_json(value) if isinstance(v, str))
        elif isinstance(part, list):
            todo += part


def empty_model(config: Any) -> PreTrainedModel | None:
    """The model that ``config`` describes, without memory for its weights; None where it describes
    none, which loading will explain.
    """
    import torch
    from transformers import AutoModelForCausalLM

    plain = copy.deepcopy(config)
    if getattr(plain, "quantization_config", None) is not None:
        del plain.quantization_config
    try:
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(
                plain, trust_remote_code=False
            )
    except Exception:  # a damaged config can fail anywhere in the library
        return None
    return model


def check_size(model: PreTrainedModel, files: CheckpointFiles, elements: int, packed: bool) -> None:
    """Hold a model without memory against what is stored, before one with memory is made. packed:
    whether the checkpoint is quantized, so that a byte may hold several weights.

    Raises:
        CheckpointError: it would be larger by far than its weights, or smaller.
    """
    known = _PACKED * files.size if packed else elements
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > _TIED * known + _SLACK:
        raise CheckpointError(
            f"{files.path}: its config describes a model of {asked:,} weights, and {known:,} are "
            "stored; refused before memory is taken: correct config.json or save the checkpoint "
            "again"
        )
    if not packed and _TIED * asked < elements and files.kind != "pickle":
        raise CheckpointError(
            f"{files.path}: its config describes a model of {asked:,} weights, and {known:,} are "
            "stored: most would be left out; correct config.json or save the checkpoint again"
        )
    tables = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    if tables > _TIED * files.size + _BUFFERS:
        raise CheckpointError(
            f"{files.path}: its config asks for tables of {tables / _GIB:,.1f} GiB beside the "
            "weights, as for masks and positions; refused: correct max_position_embeddings or "
            "n_positions in config.json"
        )


def require_memory(size: int, path: str) -> None:
    """Refuse weights that cannot fit, before they are hashed and read. size: in bytes.

    Raises:
        CheckpointError: this machine's memory, swap and GPUs together are smaller.
    """
    import psutil
    import torch

    have = psutil.virtual_memory().total + psutil.swap_memory().total
    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        have += sum(torch.cuda.get_device_properties(i).total_memory for i in range(count))
    if size > have:
        raise CheckpointError(
            f"{path}: its weights need {size / _GIB:,.1f} GiB, and this machine has "
            f"{have / _GIB:,.1f} GiB of memory in all; use a larger machine or a smaller model"
        )
