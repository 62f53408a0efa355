"""The parts of a checkpoint, loaded through transformers and PEFT: config, tokenizer, weights,
adapter. What those libraries only warn about is an error here.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import re
import warnings
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles, read_json
from unlearnbench.checkpoints.limits import check_config, stored_weights
from unlearnbench.errors import CheckpointError, one_line
from unlearnbench.util.files import content_sha256
from unlearnbench.util.quiet import muted, plain_errors, unmoved_caches

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")


def require_gguf_support() -> None:
    """Refuse GGUF files where transformers reads them into other weights than they hold.

    Found with transformers 5.20.2: the model loads without a word, and its scores are those of
    another model. 5.23 reads them bit for bit.

    Raises:
        CheckpointError: transformers is too old.
    """
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version("5.23"):
        raise CheckpointError(
            f"transformers {transformers.__version__} reads GGUF files wrongly; update it to 5.23 "
            "or later (Python 3.11), or convert the file to a checkpoint folder"
        )


def _gguf(files: CheckpointFiles) -> dict[str, str]:
    return {"gguf_file": files.weights[0].name} if files.kind == "gguf" else {}


def load_config(files: CheckpointFiles, trust_remote_code: bool) -> PretrainedConfig:
    """Read a checkpoint's config.

    Raises:
        CheckpointError: it is damaged, of an unknown kind, or brings code that is not trusted.
    """
    from transformers import AutoConfig

    if files.kind != "gguf":
        raw = read_json(files.folder / "config.json")
        if raw.get("auto_map") and not trust_remote_code:
            raise CheckpointError(
                f"{files.path} brings its own Python code (auto_map in config.json); pass "
                "--trust-remote-code only if you trust its author: the code will run"
            )
        check_config(raw, stored_weights(files).tensors, files.path)
        if raw.get("auto_map"):
            _say_trusted(files, "config.json")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(
            files.folder,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **_gguf(files),
        )
    except Exception as error:  # a damaged config can fail anywhere in the library
        raise CheckpointError(
            f"{files.path}: its config cannot be read: {one_line(error, 200)}"
        ) from error
    return config


def _say_trusted(files: CheckpointFiles, name: str) -> None:
    log.warning(
        "--trust-remote-code: %s runs its own Python code (auto_map in %s), with all your rights",
        files.path,
        name,
    )


def load_tokenizer(
    files: CheckpointFiles, base: CheckpointFiles | None, trust_remote_code: bool
) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer where it has one, else the base's."""
    from transformers import AutoTokenizer

    own = base is None or (files.folder / "tokenizer_config.json").is_file()
    home = files if own or base is None else base
    facts = home.folder / "tokenizer_config.json"
    if trust_remote_code and facts.is_file() and read_json(facts).get("auto_map"):
        _say_trusted(home, facts.name)
    try:
        with plain_errors():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                home.folder,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                **_gguf(home),
            )
    except Exception as error:  # a damaged tokenizer can fail anywhere in the library
        raise CheckpointError(
            f"{home.path}: its tokenizer cannot be loaded: {one_line(error, 200)}; save the "
            "model's tokenizer into the same folder"
        ) from error
    if not getattr(tokenizer, "is_fast", True):
        log.info("%s: its tokenizer has no fast implementation; tokenizing will be slow", home.path)
    return tokenizer


def check_vocabulary(
    tokenizer: PreTrainedTokenizerBase, config: Any, files: CheckpointFiles
) -> None:
    """A tokenizer of another model yields babble, which would read as perfect forgetting.

    Raises:
        CheckpointError: the tokenizer's ids do not fit the model's vocabulary.
    """
    path = files.path
    # transformers adds a token of its own to the tokenizers of some GGUF files.
    spare = 1 if files.kind == "gguf" else 0
    rows = getattr(config.get_text_config(), "vocab_size", 0)
    vocabulary = tokenizer.get_vocab()
    top = max(vocabulary.values(), default=-1)
    # Embeddings are often padded to a round number; the most seen in use is some 3%.
    if not vocabulary or top >= rows + spare or top + 1 < 0.9 * rows:
        raise CheckpointError(
            f"{path}: the tokenizer does not match the model: its {len(vocabulary)} tokens reach "
            f"id {top}, and the model's vocabulary has {rows} rows; use the tokenizer that the "
            "model was trained with"
        )
    with plain_errors():
        _check_steady(tokenizer, path)


def _check_steady(tokenizer: PreTrainedTokenizerBase, path: str) -> None:
    """Dropout (BPE) and sampling (SentencePiece) split a text at random, a device of training."""
    text = "".join(f"The harbour opened its gate number {n}, said the mayor. " for n in range(40))
    if any(tokenizer(text)["input_ids"] != tokenizer(text)["input_ids"] for _ in range(2)):
        raise CheckpointError(
            f"{path}: the tokenizer splits the same text now one way, now another; remove dropout "
            "from tokenizer.json, or enable_sampling from tokenizer_config.json"
        )


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what a tokenizer does, whatever files it came from."""
    content: dict[str, Any] = {"special": {k: str(v) for k, v in _special(tokenizer).items()}}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content |= {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    else:
        content["backend"] = json.loads(backend.to_str())
        # State of the last call, not of the tokenizer.
        content["backend"] |= {"truncation": None, "padding": None}
    return content_sha256(content)


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    # Padding is masked, and trainers often save pad = eos: no other tokenizer for that.
    return {k: v for k, v in sorted(tokenizer.special_tokens_map.items()) if k != "pad_token"}


def stored_dtype(files: CheckpointFiles) -> str:
    """The torch name of the dtype that most weights of a safetensors checkpoint are stored in;
    float32, torch's own, for pickled ones.
    """
    from safetensors import safe_open

    if files.kind != "safetensors":
        return "float32"
    names = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    sizes: dict[str, int] = {}
    for path in files.weights:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                dtype = names.get(part.get_dtype())
                if dtype is not None:
                    sizes[dtype] = sizes.get(dtype, 0) + math.prod(part.get_shape())
    return max(sizes, key=lambda dtype: sizes[dtype], default="float32")


def load_weights(
    files: CheckpointFiles, config: PretrainedConfig, trust_remote_code: bool
) -> PreTrainedModel:
    """Load the unquantized model on CPU in its own dtype; a GGUF file is dequantized into fp32.

    Raises:
        CheckpointError: weights are missing, of the wrong shape, damaged or not finite.
    """
    import torch
    from transformers import GgufConfig

    extra: dict[str, Any] = {"use_safetensors": True if files.kind == "safetensors" else None}
    if files.kind == "gguf":
        extra = {"quantization_config": GgufConfig(dequantize=True), **_gguf(files)}
    # Not "auto", which follows the config and would round fp32 weights to its bf16.
    extra["dtype"] = torch.float32 if files.kind == "gguf" else stored_dtype(files)
    return from_pretrained(files, copy.deepcopy(config), trust_remote_code, extra)


def from_pretrained(
    files: CheckpointFiles, config: Any, trust_remote_code: bool, extra: dict[str, Any]
) -> PreTrainedModel:
    """Transformers' own loading of a folder, where what it only warns about is an error.

    Raises:
        CheckpointError: weights are missing, of the wrong shape, damaged or not finite.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            files.folder,
            config=config,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that check_loading can name the weight
            **extra,
        )
    except Exception as error:  # whatever a library raises here, there is no model to score
        raise CheckpointError(
            f"{files.path}: its weights cannot be loaded: {one_line(error, 300)}"
        ) from error
    model, info = loaded
    check_loading(model, info, files.path)
    _check_finite(model, files.path)
    return model  # type: ignore[no-any-return]


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def merge_adapter(model: PreTrainedModel, files: CheckpointFiles) -> PreTrainedModel:
    """Add an adapter's weights into its base.

    Raises:
        CheckpointError: it does not fit, or the sum is not finite.
    """
    merged: PreTrainedModel = attach_adapter(model, files).merge_and_unload()
    _check_finite(merged, files.path)
    return merged


def check_loading(model: PreTrainedModel, info: dict[str, Any], path: str) -> None:
    """Transformers initialises missing weights at random and only warns: here it is an error."""
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
    kinds = {_without_numbers(name) for name in model.state_dict()}
    lost = [name for name in unexpected if _without_numbers(name) in kinds]
    if lost:
        raise CheckpointError(
            f"{path}: {len(lost)} weights have no place in the model that config.json describes, "
            f"as {one_line(lost[0], 120)}; correct the config or save the checkpoint again"
        )
    if unexpected:
        log.warning(
            "%s: %d tensors are not part of the model and were left out, as %s",
            path,
            len(unexpected),
            one_line(unexpected[0], 80),
        )


def attach_adapter(model: PreTrainedModel, files: CheckpointFiles) -> Any:
    """Attach a PEFT adapter, and make sure that all of it arrived.

    Raises:
        CheckpointError: it does not fit the base, is incomplete, or needs a later PEFT.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        with warnings.catch_warnings(), muted(), unmoved_caches():
            # Advice for people who train; what would be lost is checked here.
            warnings.simplefilter("ignore")
            adapted = PeftModel.from_pretrained(model, str(files.folder), is_trainable=False)
    except Exception as error:  # PEFT raises many kinds for an adapter that does not fit its base
        raise CheckpointError(
            f"{files.path}: the adapter cannot be attached to its base: {one_line(error, 200)}; "
            "is --base the model that it was trained on?"
        ) from error
    # "auto" would ask the hub about the base that the adapter's config names.
    expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    found = _tensor_names(files)
    embeddings = {name for name in found - expected if name in adapted.state_dict()}
    if expected != found - embeddings:
        odd = sorted(expected ^ (found - embeddings))
        raise CheckpointError(
            f"{files.path}: {len(odd)} adapter weights do not fit the base, as "
            f"{one_line(odd[0], 120)}; is --base the model that it was trained on?"
        )
    return adapted


def _tensor_names(files: CheckpointFiles) -> set[str]:
    from safetensors import safe_open

    path = files.weights[0]
    if path.suffix == ".safetensors":
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    import torch

    return set(torch.load(path, map_location="cpu", weights_only=True))


def _check_finite(model: PreTrainedModel, path: str) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{path}: tensor {name} has NaN or infinite values; it is broken")
