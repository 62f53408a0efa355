"""A checkpoint's weight matrices one at a time, without a model: streamed from safetensors files,
so that a 7B checkpoint needs the memory of one matrix.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles, find_checkpoint
from unlearnbench.checkpoints.limits import check_size, empty_model, require_memory, stored_weights
from unlearnbench.checkpoints.load import load_config
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.packed import stored_scheme
from unlearnbench.checkpoints.source import open_source
from unlearnbench.conditions.base import linear_names, require_most
from unlearnbench.errors import CheckpointError, PrecisionError, one_line

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weights:
    """linear: the modules that a precision covers. read: a module's weight, (out, in), fp32."""

    path: str
    config: Mapping[str, Any]
    linear: tuple[str, ...]
    read: Callable[[str], torch.Tensor]


def open_weights(model: str, options: LoadOptions, stack: ExitStack) -> Weights:
    """Open a checkpoint for reading; its files stay open until ``stack`` closes. Adapters, pickles
    and GGUF files are loaded whole.

    Raises:
        CheckpointError: something is missing, damaged or unsafe.
        PrecisionError: the checkpoint is quantized already.
    """
    files = find_checkpoint(
        model, options.revision, options.allow_pickle, options.trust_remote_code
    )
    if files.kind != "safetensors":
        return _in_memory(model, options)
    stored = stored_weights(files)
    require_memory(4 * stored.largest, files.path)  # one matrix in fp32
    config = load_config(files, options.trust_remote_code)
    scheme = stored_scheme({"quantization_config": _quantization(config)}, files.path)
    if scheme is not None:
        raise PrecisionError(
            f"{files.path} is quantized already ({scheme.text}); inspect compares unquantized "
            "checkpoints"
        )
    empty = empty_model(config)
    if empty is not None:
        check_size(empty, files, stored.elements, packed=False)
    names = _linear_of(config, options.trust_remote_code, files.path)
    return _streamed(files, config.get_text_config().to_dict(), names, stack)


def _quantization(config: Any) -> Any:
    found = getattr(config, "quantization_config", None)
    return found if found is None or isinstance(found, dict) else found.to_dict()


def _in_memory(model: str, options: LoadOptions) -> Weights:
    source = open_source(model, options, keep=True)
    state = source.state_dict()
    return Weights(
        source.files.path,
        source.config.get_text_config().to_dict(),
        tuple(linear_names(source.model())),
        lambda name: state[f"{name}.weight"].float(),
    )


def _linear_of(config: Any, trust_remote_code: bool, path: str) -> list[str]:
    """The model's linear modules, from a model without weights."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # a damaged config can fail anywhere in the library
        raise CheckpointError(
            f"{path}: its config describes no causal language model: {one_line(error, 200)}"
        ) from error
    return linear_names(model)


def _streamed(
    files: CheckpointFiles, config: Mapping[str, Any], names: list[str], stack: ExitStack
) -> Weights:
    from safetensors import safe_open

    places: dict[str, Any] = {}
    for path in files.weights:
        handle = stack.enter_context(safe_open(path, framework="pt"))
        places |= dict.fromkeys(handle.keys(), handle)
    for name in names:
        if f"{name}.weight" not in places:
            raise CheckpointError(
                f"{files.path} has no tensor {name}.weight; save it with save_pretrained"
            )
    _require_most(files.path, places, names)

    def read(name: str) -> torch.Tensor:
        tensor: torch.Tensor = places[f"{name}.weight"].get_tensor(f"{name}.weight")
        return tensor.float()

    return Weights(files.path, config, tuple(names), read)


def _require_most(path: str, places: Mapping[str, Any], names: list[str]) -> None:
    sizes = {}
    for key, handle in places.items():
        shape = handle.get_slice(key).get_shape()
        if (
            len(shape) > 1
            and "embed" not in key
            and not key.endswith(("lm_head.weight", "wte.weight"))
        ):
            sizes[key.removesuffix(".weight")] = math.prod(shape)
    require_most(f"{path}: quantization", sizes, names)
