"""Config and weights through transformers; what that only warns about is an error."""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import reduce
from typing import TYPE_CHECKING, Any, TypeAlias

from unlearnbench.checkpoints.find import CheckpointFiles
from unlearnbench.checkpoints.limits import auto_class, check_config, places
from unlearnbench.errors import CheckpointError, NotInForceError, one_line
from unlearnbench.util.process import muted

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel
    from transformers.pytorch_utils import Conv1D

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NUMBER = re.compile(r"\d+")
# Parts inside a decoder that only images or sound enter.
_NO_TEXT = {
    "GitVisionModel",
    "GitProjection",
    "MllamaCrossAttentionDecoderLayer",
    "Phi4MultimodalFeatureEmbedding",
}
LinearLayer: TypeAlias = "nn.Linear | Conv1D"
OWN_CODE = "--trust-remote-code: %s runs its own Python code (auto_map in %s), with all your rights"
"""Said of a checkpoint's path and of the file that names the code."""

log = logging.getLogger("unlearnbench")


def local_only(files: CheckpointFiles) -> dict[str, Any]:
    """What all of transformers' loading functions are told."""
    told = {"trust_remote_code": files.trusted, "local_files_only": True}
    return told | ({"gguf_file": files.weights[0].name} if files.kind == "gguf" else {})


@contextmanager
def refusing(what: str, remedy: str = "") -> Iterator[None]:
    """Turn whatever a library raises over a damaged or hostile file into a CheckpointError."""
    try:
        yield
    except Exception as error:  # their errors have no common base
        raise CheckpointError(f"{what}: {one_line(error, 300)}{remedy}") from error


def load_config(files: CheckpointFiles) -> PretrainedConfig:
    """CheckpointError for a config that is damaged, unknown, or brings code that is not trusted."""
    from transformers import AutoConfig

    if files.kind != "gguf":
        check_config(files.config, files.count, files.path)
        if files.config.get("auto_map"):
            if not files.trusted:
                raise CheckpointError(
                    f"{files.path} brings its own Python code (auto_map in config.json); pass "
                    "--trust-remote-code only if you trust its author: the code will run"
                )
            log.warning(OWN_CODE, files.path, "config.json")
    with refusing(f"{files.path}: its config cannot be read"):
        config: PretrainedConfig = AutoConfig.from_pretrained(files.folder, **local_only(files))
    return config


def count_dtypes(files: CheckpointFiles, model: PreTrainedModel | None = None) -> Counter[str]:
    """How many tensors are stored in each dtype, as torch names it. model: without memory; what it
    has no place for, as tables of positions, does not count.
    """
    tensors = files.tensors
    if model is not None:
        # Transformers leaves these in fp32 whatever it is told.
        kept = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        homes = {name: home for name, (home, _) in places(model, tensors).items()}
        left = (name for name, home in homes.items() if not any(part in home for part in kept))
        tensors = {name: tensors[name] for name in left}
    return Counter(_DTYPES[tensor.dtype] for tensor in tensors.values() if tensor.dtype in _DTYPES)


def widest_dtype(counts: Mapping[str, int]) -> str:
    """That holds all of ``counts`` exactly: float32 where bf16 meets fp16, and for pickles."""
    import torch

    if not counts:
        return "float32"
    widest = reduce(torch.promote_types, (getattr(torch, name) for name in counts))
    return str(widest).removeprefix("torch.")


def device_map(device: str) -> Any:
    """What transformers is told of ``device``: all on it, or spread over all GPUs (``auto``)."""
    return device if device == "auto" else {"": device}


def load_weights(files: CheckpointFiles, config: PretrainedConfig, dtype: str) -> PreTrainedModel:
    """The unquantized model on CPU in ``dtype``, of a GGUF file in fp32."""
    import torch
    from transformers import GgufConfig

    # Not "auto", which follows the config and would round fp32 weights to its bf16.
    extra: dict[str, Any] = {"dtype": dtype}
    if files.kind == "safetensors":
        extra["use_safetensors"] = True
    elif files.kind == "gguf":
        extra = {"quantization_config": GgufConfig(dequantize=True), "dtype": torch.float32}
    return from_pretrained(files, copy.deepcopy(config), extra)


def from_pretrained(files: CheckpointFiles, config: Any, extra: dict[str, Any]) -> PreTrainedModel:
    """Transformers' own loading; CheckpointError for missing, damaged or non-finite weights."""
    # Of a GGUF file transformers shows a bar that its own switch does not silence.
    quiet = muted() if files.kind == "gguf" else nullcontext()
    with refusing(f"{files.path}: its weights cannot be loaded"), quiet:
        loaded: Any = auto_class(config).from_pretrained(
            files.folder,
            config=config,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that check_loading can name the weight
            **local_only(files),
            **extra,
        )
    model, info = loaded
    check_loading(model, info, files.path)
    require_finite(model, files.path)
    return model.eval()  # type: ignore[no-any-return]


def check_loading(model: PreTrainedModel, info: dict[str, Any], path: str) -> None:
    """Raise CheckpointError for missing weights, which transformers makes up at random."""
    for kind, remedy in (
        ("missing_keys", "the checkpoint lacks weights that its config asks for"),
        ("mismatched_keys", "the weights do not have the shapes that the config asks for"),
        ("error_msgs", "some weights could not be loaded"),
    ):
        names = sorted(map(str, info.get(kind) or ()))
        if names:
            raise CheckpointError(
                f"{path}: {remedy}: {one_line(names[0], 120)} ({len(names)} in all); "
                "save the checkpoint again"
            )
    unexpected = sorted(map(str, info.get("unexpected_keys") or ()))
    # A weight beside like ones, as of a further layer, was dropped by a config that is too small; a
    # part of another kind, as a value head, is no part of a language model.
    kinds = {_NUMBER.sub("#", name) for name in model.state_dict()}
    lost = [name for name in unexpected if _NUMBER.sub("#", name) in kinds]
    if lost:
        raise CheckpointError(
            f"{path}: {len(lost)} weights have no place in the model that config.json describes, "
            f"as {one_line(lost[0], 120)}; correct the config or save the checkpoint again"
        )
    if unexpected:
        message = "%s: %d tensors are not part of the model and were left out, as %s"
        log.warning(message, path, len(unexpected), one_line(unexpected[0], 80))


def require_finite(model: PreTrainedModel, path: str) -> None:
    """Raise CheckpointError where a weight is NaN or infinite."""
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # of 8 bits torch can't say
        if not bool(wide.isfinite().all()):
            raise CheckpointError(f"{path}: tensor {name} has NaN or infinite values; it is broken")


def text_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that text passes through, by name: all of a language model, and of one that takes
    images or sound too its decoder and output head.
    """
    every = dict(model.named_modules())
    config: Any = getattr(model, "config", None)
    whole: Any = model
    parts = [model]
    if config is not None and config.get_text_config(decoder=True) is not config:
        parts = [part for part in (whole.get_decoder(), whole.get_output_embeddings()) if part]
    inside = {id(module) for part in parts for module in part.modules()}
    for module in every.values():
        if type(module).__name__ in _NO_TEXT:
            inside -= {id(part) for part in module.modules()}
    return {name: module for name, module in every.items() if id(module) in inside}


def left_alone(model: PreTrainedModel) -> list[str] | None:
    """What a library is told not to quantize: modules that text does not pass through, each with
    all that is inside it, and the output head; None where that is all, which libraries know.
    """
    text = {id(module) for module in text_modules(model).values()}
    head, names, found = model.get_output_embeddings(), list[str](), list[str]()
    for name, module in model.named_modules():
        if module is head:
            names.append(name)
        is_new = not any(name.startswith(f"{known}.") for known in found)
        if is_new and not any(id(part) in text for part in module.modules()):
            found.append(name)
    return found + names if found else None


def linear_layers(model: nn.Module) -> dict[str, LinearLayer]:
    """Those that text passes through but the output head, by name: what quantization, pruning and
    masks act on. ``out_first`` says how a weight lies.
    """
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = getattr(model, "get_output_embeddings", lambda: None)()
    found = text_modules(model).items()
    linear = {name: part for name, part in found if isinstance(part, (nn.Linear, Conv1D))}
    return {name: module for name, module in linear.items() if module is not head}


def out_first(module: nn.Module, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the shape of ``module``'s weight as (out, in), or back again; a view. GPT-2's
    Conv1D holds its weight as (in, out), all others as (out, in).
    """
    from transformers.pytorch_utils import Conv1D

    return tensor.T if isinstance(module, Conv1D) else tensor


def matrices(model: PreTrainedModel) -> dict[str, int]:
    """Weights of each matrix that text passes through but embeddings and the output head, by its
    module.
    """
    from torch import nn

    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    return {
        f"{name}.{key}".removesuffix(".weight"): tensor.numel()
        for name, module in text_modules(model).items()
        if id(module) not in ends and not isinstance(module, nn.Embedding)
        for key, tensor in module.named_parameters(recurse=False)
        if tensor.dim() > 1
    }


def require_most(what: str, sizes: Mapping[str, int], covered: Collection[str]) -> None:
    """Raise NotInForceError where ``covered`` leaves much out. sizes: weights of each matrix."""
    left = {name: size for name, size in sizes.items() if name not in covered}
    if sum(left.values()) > 0.1 * sum(sizes.values()):
        largest = max(left, key=lambda name: left[name])
        raise NotInForceError(
            f"{what} leaves {sum(left.values()):,} of {sum(sizes.values()):,} weights as they "
            f"are, the most in {one_line(largest, 120)}; this kind of model cannot be measured "
            "at a quantized precision"
        )
