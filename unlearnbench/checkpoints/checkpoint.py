"""One checked checkpoint: its weights are read once, and every condition is made from them."""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints import find, limits, load
from unlearnbench.checkpoints import tokenizer as tokens
from unlearnbench.checkpoints.adapter import attach_adapter, check_adapter_config, merge_adapter
from unlearnbench.checkpoints.find import CheckpointFiles, find_checkpoint
from unlearnbench.checkpoints.gguf import require_gguf_support
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, read_origin
from unlearnbench.checkpoints.packed import stored_scheme
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError, one_line
from unlearnbench.results import Checkpoint, TokenizerSource
from unlearnbench.util.files import content_sha256
from unlearnbench.util.process import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("unlearnbench")

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class CheckpointSource:
    """A checkpoint whose files were checked; its weights load on first use. base: an adapter's.
    keep: hold the unquantized model between conditions, or else its files are read for each.
    """

    ensemble: None = None

    def __init__(
        self, files: CheckpointFiles, base: CheckpointFiles | None, options: LoadOptions, keep: bool
    ) -> None:
        import psutil
        import torch

        self.files, self.options = files, options
        self.full = full = base or files
        """The files with the config and the full weights."""
        self._model: PreTrainedModel | None = None
        quiet_transformers()
        size = full.size
        if full.kind == "gguf":
            require_gguf_support()
            size = 4 * full.elements  # unpacked into fp32
        limits.require_memory(size, full.path)
        self.config = load.load_config(full)
        packed = find.is_quantized(full.config)
        self.stored = stored_scheme(full.config, full.path) if packed else None
        """How its weights are quantized already; None where they are not."""
        self._base_dtype, self._dtype = self._check_asked()
        if full.kind == "safetensors" and self.stored is None:  # narrower ones are widened
            size = max(size, full.elements * getattr(torch, self._dtype).itemsize)
            limits.require_memory(size, full.path)
        self._keep = keep and psutil.virtual_memory().available > 2.5 * size  # and one copy of it
        self.home = find.find_home(files, full, options)
        """The files with the tokenizer."""
        self.tokenizer = tokens.load_tokenizer(self.home, options.add_bos_token)
        tokens.check_tokenizer(self.tokenizer, self.config, self.home)
        if self.stored is not None and base is not None and options.adapter == "merge":
            raise PrecisionError(
                f"the base {base.path} is quantized already ({self.stored.text}), and nothing can "
                "be merged into it; use --adapter keep"
            )
        self.checkpoint = _describe(self)
        """What results record of it."""

    def _check_asked(self) -> tuple[str, str]:
        """Hold what the configs ask for against what is stored, before anything is made of it;
        gives the dtype that holds all weights, and what it is with an adapter merged in.
        """
        full, packed = self.full, self.stored is not None
        model, names = limits.empty_model(self.config), list[str]()
        if model is not None:
            stored = 8 * full.size if packed else full.elements  # a byte holds 8 weights at most
            exact = not packed and full.kind != "pickle"
            limits.check_size(model, full.path, stored, full.size, exact)
            names = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
        if packed:
            schemes = [full.config.get(key) for key in find.SCHEMES]
            limits.check_patterns(schemes, names, f"{full.path}: quantization_config")
        if self.files.kind == "adapter":
            check_adapter_config(self.files, names, self.adapter_kept)
        counts = load.count_dtypes(full, model)
        base = load.widest_dtype(counts)
        if self.files.kind == "adapter" and not self.adapter_kept:
            counts += load.count_dtypes(self.files)
        widest = load.widest_dtype(counts)
        if len(counts) > 1:
            message = "%s: its weights are stored as %s; loaded in %s, which rounds none of them"
            said = " and ".join(f"{name} ({count} tensors)" for name, count in counts.most_common())
            log.warning(message + "; --dtype says otherwise", self.files.path, said, widest)
        return base, widest

    @property
    def parts(self) -> tuple[CheckpointSource]:
        return (self,)

    @property
    def own_dtype(self) -> str:
        """The widest of the weights'; CheckpointError for one that cannot be computed in."""
        if self.full.kind == "gguf":
            return "fp32"  # as it is unpacked
        short = {long: short for short, long in DTYPES.items()}.get(self._dtype)
        if short is not None:
            return short
        raise CheckpointError(f"{self.files.path} is stored as {self._dtype}; save it as bfloat16")

    @property
    def adapter_kept(self) -> bool:
        """Whether an adapter has to be attached to the quantized base."""
        return self.files.kind == "adapter" and self.options.adapter == "keep"

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The unquantized weights by parameter name, on CPU, in the checkpoint's own dtype."""
        return dict(self.model().state_dict())

    def model(self) -> PreTrainedModel:
        """The unquantized model on CPU in its own dtype, not to be changed; CheckpointError for
        damaged weights, PrecisionError for quantized ones.
        """
        import torch

        if self.stored is not None:
            raise PrecisionError(f"{self.files.path} is quantized already: {self.stored.text}")
        if self._model is None:
            model = load.load_weights(self.full, self.config, self._base_dtype)
            if self.files.kind == "adapter" and not self.adapter_kept:
                model = merge_adapter(model, self.files, getattr(torch, self._dtype))
                load.require_finite(model, self.files.path)
            self._model = model
        return self._model

    def holding(self, model: PreTrainedModel) -> CheckpointSource:
        """The same checkpoint with other unquantized weights, those of ``model`` on CPU."""
        other = copy.copy(self)
        other._model = model
        return other

    def build(
        self,
        dtype: torch.dtype,
        device: str,
        *,
        state: dict[str, torch.Tensor] | None = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """A new model through transformers' own loading, so that a precision is what users get."""
        own = self.model()
        with load.refusing(f"{self.files.path} cannot be loaded"):
            loaded: Any = type(own).from_pretrained(
                None,
                config=copy.deepcopy(own.config),
                state_dict=dict(own.state_dict()) if state is None else state,
                dtype=dtype,
                quantization_config=quantization_config,
                device_map=load.device_map(device),
                output_loading_info=True,
            )
        model, info = loaded
        load.check_loading(model, info, self.files.path)
        model.generation_config = own.generation_config  # not from a folder, so not found
        return model.eval()  # type: ignore[no-any-return]

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Attach the adapter where it is kept; CheckpointError where it does not fit."""
        return attach_adapter(model, self.files).eval() if self.adapter_kept else model

    def release(self) -> None:
        """Drop the weights from memory, unless they are kept for the next condition."""
        if not self._keep:
            self._model = None


def _describe(source: CheckpointSource) -> Checkpoint:
    """Hashes, and how the weights came about; from a 4-bit grid they are not full precision."""
    files, full, origin = source.files, source.full, dict[str, str]()
    if source.stored is not None:
        origin["quantized"] = f"{source.stored.bits:g} bits, {source.stored.text}"
    elif full.kind == "gguf":
        types = sorted(Counter(tensor.dtype for tensor in full.tensors.values()).items())
        origin["gguf_tensor_types"] = ", ".join(f"{count} {name}" for name, count in types)
    record = files.folder / FILE
    if record.is_file():
        origin |= read_origin(record)
    config = content_sha256(_config_facts(files, full, source.config))
    rows = getattr(source.config.get_text_config(), "vocab_size", 0)
    given = None
    if source.options.tokenizer is not None:
        given = TokenizerSource(path=source.home.path, revision=source.home.revision)
    facts = hash_files(files, source.tokenizer, rows).model_copy(
        update={"config_sha256": config, "origin": origin, "tokenizer": given}
    )
    if full is files:
        return facts
    try:
        tokenizer = tokens.load_tokenizer(full)
    except CheckpointError:  # a base without one, where the adapter brings its own
        tokenizer = source.tokenizer
    base = hash_files(full, tokenizer, rows)
    weights = content_sha256([facts.weights_sha256, base.weights_sha256])
    adapter = "merged" if source.options.adapter == "merge" else "kept"
    return facts.model_copy(update={"weights_sha256": weights, "adapter": adapter, "base": base})


def hash_files(files: CheckpointFiles, tokenizer: PreTrainedTokenizerBase, rows: int) -> Checkpoint:
    """What results record of files; rows: of the model's embedding."""
    return Checkpoint(
        path=files.path,
        revision=files.revision,
        format=files.kind,
        weights_sha256=find.files_sha256(files.weights),
        tokenizer_sha256=tokens.tokenizer_sha256(tokenizer),
        tokenizer_probe_sha256=tokens.probe_sha256(tokenizer, rows),
        tokenizer_unsteered_sha256=tokens.unsteered_sha256(tokenizer, rows),
    )


def _config_facts(files: CheckpointFiles, full: CheckpointFiles, config: Any) -> dict[str, object]:
    """The configs, without what changes at each saving, and the ends of texts where they differ."""
    facts: dict[str, object] = json.loads(config.to_json_string(use_diff=False))
    try:
        named = find.read_json(full.folder / "generation_config.json").get("eos_token_id")
    except CheckpointError:  # not there, or damaged: transformers takes config.json's
        named = facts.get("eos_token_id")
    if tokens.named_ends(named) != tokens.named_ends(facts.get("eos_token_id")):
        facts["generation_eos_token_id"] = tokens.named_ends(named)
    if files.kind == "adapter":
        passing = ("base_model_name_or_path", "revision", "peft_version", "inference_mode")
        # PEFT keeps lists of modules as sets and writes them in any order.
        facts["adapter"] = {
            key: sorted(map(str, value)) if isinstance(value, list) else value
            for key, value in files.config.items()
            if value is not None and key not in passing
        }
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version"):
        facts.pop(key, None)
    return facts


def open_checkpoint(model: str, options: LoadOptions, keep: bool = True) -> CheckpointSource:
    """Check and open a checkpoint; CheckpointError for what is missing, damaged, unsafe or does not
    fit, PrecisionError where it is quantized by a scheme that cannot be loaded.
    """
    files = find_checkpoint(model, options, options.revision)
    if options.revision is not None and files.revision is None:
        raise OptionError(f"--revision is for hub ids, and {model} is a local path")
    if files.kind != "adapter":
        if options.base is not None:
            raise OptionError(f"--base is for adapter folders, and {model} is a full checkpoint")
        return CheckpointSource(files, None, options, keep)
    named = options.base
    if named is None:
        said = files.config.get("base_model_name_or_path")
        if not options.allow_adapter_base:
            raise CheckpointError(
                f"{files.path} is an adapter; give its base model with --base PATH, or pass "
                f"--allow-adapter-base to load the one that its config names ({one_line(said, 80)})"
            )
        if not isinstance(said, str) or not said:
            raise CheckpointError(f"{files.path}'s config names no base; pass --base PATH")
        message = "--allow-adapter-base: the base %s is loaded because %s names it"
        log.warning(message, one_line(said, 120), files.path)
        named = said
    base = find_checkpoint(named, options)
    if base.kind == "adapter":
        raise CheckpointError(f"the base {base.path} is an adapter itself; merge it first")
    return CheckpointSource(files, base, options, keep)
