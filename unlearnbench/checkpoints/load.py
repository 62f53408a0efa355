"""Config and weights through transformers; what that only warns about is an error."""

from __future__ import annotations

import copy
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles
from unlearnbench.checkpoints.limits import check_config, places
from unlearnbench.errors import CheckpointError, NotInForceError, one_line

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel

_DTYPES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_NUMBER = re.compile(r"\d+")
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
    from transformers import AutoModelForCausalLM

    with refusing(f"{files.path}: its weights cannot be loaded"):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
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


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """All but the output head, by name: what quantization, pruning and masks act on."""
    from torch import nn

    head = getattr(model, "get_output_embeddings", lambda: None)()
    linear = {n: part for n, part in model.named_modules() if isinstance(part, nn.Linear)}
    return {name: module for name, module in linear.items() if module is not head}


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
