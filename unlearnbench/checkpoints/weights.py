"""Weight matrices streamed from safetensors: a 7B checkpoint needs the memory of one matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.find import find_checkpoint
from unlearnbench.checkpoints.limits import check_size, empty_model, places, require_memory
from unlearnbench.checkpoints.load import (
    linear_layers,
    load_config,
    matrices,
    out_first,
    require_most,
)
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.packed import stored_scheme
from unlearnbench.errors import CheckpointError, PrecisionError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Weights:
    """The weight matrices of one checkpoint."""

    path: str
    config: Mapping[str, Any]
    """The text model's config."""
    linear: tuple[str, ...]
    """The linear layers but the head, by name."""
    read: Callable[[str], torch.Tensor]
    """Gives a module's weight, (out, in), in fp32."""
    stored: Mapping[str, str] = field(default_factory=dict)
    """The name of its tensor in the files; empty where they are not safetensors."""
    keep: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, weight: weight
    """Turns a module's weight, (out, in), as the files have it."""


def open_weights(model: str, options: LoadOptions, stack: ExitStack) -> Weights:
    """Files stay open until ``stack`` closes; adapters, pickles and GGUF files are loaded whole.
    CheckpointError for what is missing, damaged or unsafe, PrecisionError where it is quantized.
    """
    from safetensors import safe_open

    files = find_checkpoint(model, options, options.revision)
    if files.kind != "safetensors":
        source = open_checkpoint(model, options)
        whole = linear_layers(source.model())
        return Weights(
            files.path,
            source.config.get_text_config().to_dict(),
            tuple(whole),
            lambda name: out_first(whole[name], whole[name].weight.detach()).float().contiguous(),
        )
    largest = max(tensor.elements for tensor in files.tensors.values())
    require_memory(4 * largest, files.path)  # one matrix in fp32
    config: Any = load_config(files)
    scheme = stored_scheme(config.to_dict(), files.path)
    if scheme is not None:
        raise PrecisionError(
            f"{files.path} is quantized already ({scheme.text}); use the unquantized checkpoint"
        )
    empty = empty_model(config, files.trusted)
    if empty is None:
        raise CheckpointError(f"{files.path}: its config describes no causal language model")
    check_size(empty, files.path, files.elements, files.size, exact=True)
    layers = linear_layers(empty)
    handles: dict[str, Any] = {}
    for path in files.weights:
        handle = stack.enter_context(safe_open(path, framework="pt"))
        handles |= dict.fromkeys(handle.keys(), handle)
    homes = places(empty, handles).items()
    known = dict(empty.named_parameters(remove_duplicate=False))  # tied ones by both names
    held = {id(known[home]) for _, (home, _) in homes if home in known}
    tied = getattr(empty, "all_tied_weights_keys", {})
    lacking = sorted(n for n, w in known.items() if id(w) not in held and n not in tied)
    if lacking:
        raise CheckpointError(
            f"{files.path} has no tensor {lacking[0]}; save it with save_pretrained"
        )
    stored = {home.removesuffix(".weight"): key for key, (home, is_whole) in homes if is_whole}
    for name in layers:
        if name not in stored:
            raise CheckpointError(
                f"{files.path} has no tensor {name}.weight; save it with save_pretrained"
            )
    require_most(f"{files.path}: quantization", matrices(empty), layers)

    def read(name: str) -> torch.Tensor:
        tensor = handles[stored[name]].get_tensor(stored[name])
        return out_first(layers[name], tensor).float().contiguous()

    def keep(name: str, weight: torch.Tensor) -> torch.Tensor:
        return out_first(layers[name], weight).contiguous()

    own = {name: stored[name] for name in layers}
    facts = config.get_text_config().to_dict()
    return Weights(files.path, facts, tuple(layers), read, own, keep)
