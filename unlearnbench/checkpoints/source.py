"""An unquantized checkpoint, read once; every precision is made from it."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.adapter import check_adapter_config
from unlearnbench.checkpoints.describe import describe_checkpoint, gguf_tensors
from unlearnbench.checkpoints.find import (
    CheckpointFiles,
    find_checkpoint,
    is_quantized,
    read_json,
)
from unlearnbench.checkpoints.gguf import check_gguf
from unlearnbench.checkpoints.limits import check_size, empty_model, require_memory, stored_weights
from unlearnbench.checkpoints.load import (
    attach_adapter,
    check_loading,
    check_vocabulary,
    load_config,
    load_tokenizer,
    load_weights,
    merge_adapter,
    require_gguf_support,
    stored_dtype,
)
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.packed import StoredScheme, load_packed, stored_scheme
from unlearnbench.checkpoints.patterns import check_patterns, patterns_in
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError, one_line
from unlearnbench.models.cache import KnownIds
from unlearnbench.models.mapped import give_back
from unlearnbench.util.quiet import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from unlearnbench.conditions.base import PrecisionSpec

log = logging.getLogger("unlearnbench")

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Source:
    """A checkpoint whose files were checked; its weights load on first use.

    ``keep`` holds the unquantized model in memory between precisions; otherwise its files are read
    again for each.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        base: CheckpointFiles | None,
        options: LoadOptions,
        keep: bool,
    ) -> None:
        self.files = files
        self.base = base
        self.options = options
        self._model: PreTrainedModel | None = None
        quiet_transformers()
        self._weights = base or files  # where config and full weights are
        if self._weights.kind == "gguf":
            require_gguf_support()
            check_gguf(self._weights.weights[0])
        size = _full_size(self._weights)
        require_memory(size, self._weights.path)
        self._keep = keep and _fits_in_memory(size)
        self.config = load_config(self._weights, options.trust_remote_code)
        self._check_asked(size)
        self.tokenizer = load_tokenizer(files, base, options.trust_remote_code)
        self.known_ids = KnownIds()
        check_vocabulary(self.tokenizer, self.config, files)
        self.stored = _stored_scheme(self._weights)
        if self.stored is not None and base is not None and options.adapter == "merge":
            raise PrecisionError(
                f"the base {base.path} is quantized already ({self.stored.text}), and nothing can "
                "be merged into it; use --adapter keep"
            )
        self.checkpoint = describe_checkpoint(self, self._weights)

    def _check_asked(self, size: int) -> None:
        """Hold what the configs ask for against what is stored, before anything is made of it.
        size: as of ``_full_size``.
        """
        weights = self._weights
        model = empty_model(self.config)
        names: list[str] = []
        if model is not None:
            gguf = weights.kind == "gguf"
            elements = size // 4 if gguf else stored_weights(weights).elements
            packed = weights.kind == "safetensors" and is_quantized(weights.folder)
            check_size(model, weights, elements, packed)
            names = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
        if weights.kind != "gguf":
            raw = read_json(weights.folder / "config.json")
            schemes = [raw.get(key) for key in ("quantization_config", "compression_config")]
            check_patterns(patterns_in(schemes), names, f"{weights.path}: quantization_config")
        if self.files.kind == "adapter":
            check_adapter_config(self.files, names)

    @property
    def own_dtype(self) -> str:
        """The short name of the dtype that most of the weights are stored in, whatever the config
        says; a GGUF file is dequantized into fp32.

        Raises:
            CheckpointError: none that can be computed in.
        """
        if self._weights.kind == "gguf":
            return "fp32"
        name = stored_dtype(self._weights)
        short = {long: short for short, long in DTYPES.items()}.get(name)
        if short is None:
            raise CheckpointError(f"{self.files.path} is stored as {name}; save it as bfloat16")
        return short

    @property
    def adapter_kept(self) -> bool:
        """Whether an adapter has to be attached to the quantized base."""
        return self.files.kind == "adapter" and self.options.adapter == "keep"

    @property
    def truncate_left(self) -> bool:
        """Whether to cut prompts beyond the model's context on the left."""
        return self.options.truncate_left

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The unquantized weights by parameter name, on CPU, in the checkpoint's own dtype."""
        return dict(self.model().state_dict())

    def model(self) -> PreTrainedModel:
        """The unquantized model on CPU, in the checkpoint's own dtype; not to be changed.

        Raises:
            CheckpointError: the weights do not load, do not fit the config, or are not finite.
            PrecisionError: the checkpoint is quantized already.
        """
        if self.stored is not None:
            raise PrecisionError(f"{self.files.path} is quantized already: {self.stored.text}")
        if self._model is None:
            model = load_weights(self._weights, self.config, self.options.trust_remote_code)
            if self.files.kind == "adapter" and not self.adapter_kept:
                model = merge_adapter(model, self.files)
            self._model = model
        return self._model

    def build(
        self,
        dtype: torch.dtype,
        device: str,
        *,
        state: dict[str, torch.Tensor] | None = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """Make a new model from the weights (or from ``state``), through transformers' own loading
        path, so that a precision is what its users get.

        Raises:
            CheckpointError: transformers cannot build it.
        """
        model_class = type(self.model())
        try:
            loaded: Any = model_class.from_pretrained(
                None,
                config=copy.deepcopy(self.model().config),
                state_dict=self.state_dict() if state is None else state,
                dtype=dtype,
                quantization_config=quantization_config,
                device_map=device_map(device),
                output_loading_info=True,
            )
        except Exception as error:  # whatever a library raises here, there is no model to score
            raise CheckpointError(
                f"{self.files.path} cannot be loaded: {one_line(error)}"
            ) from error
        model, info = loaded
        check_loading(model, info, self.files.path)
        model.generation_config = self.model().generation_config  # not from a folder, so not found
        return model.eval()  # type: ignore[no-any-return]

    def load_stored(self, dtype: torch.dtype, device: str) -> PreTrainedModel:
        """Load a checkpoint that is quantized already, as it is.

        Raises:
            CheckpointError: it does not load.
        """
        return load_packed(
            self._weights, self.config, self.options.trust_remote_code, dtype, device
        )

    def require_precision(self, spec: PrecisionSpec) -> None:
        """Refuse to quantize a second time.

        Raises:
            PrecisionError: the checkpoint is quantized already and ``spec`` is not ``none``.
        """
        if self.stored is not None and spec.name != "none":
            raise PrecisionError(
                f"{self.files.path} is quantized already ({self.stored.text}) and cannot be loaded "
                f"as {spec.name}; use --quant none for it as it is, or give the unquantized "
                "checkpoint"
            )

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Attach the adapter to its quantized base where it is kept; else return the model.

        Raises:
            CheckpointError: the adapter does not fit.
        """
        if not self.adapter_kept:
            return model
        adapted: PreTrainedModel = attach_adapter(model, self.files).eval()
        return adapted

    def give_back(self) -> int:
        """Let the system have the memory of the weights back where that is their file's; they stay
        usable. Returns their bytes, 0 where they are in memory of their own.
        """
        if self._model is None:
            return 0
        return give_back(self._model.parameters(), self._weights.weights)

    def release(self) -> None:
        """Drop the weights from memory, unless they are kept for the next precision."""
        if not self._keep:
            self._model = None


def device_map(device: str) -> Any:
    """What transformers is told of ``device``: all on it, or spread over all GPUs (``auto``)."""
    return device if device == "auto" else {"": device}


def open_source(model: str, options: LoadOptions, keep: bool = True) -> Source:
    """Check a checkpoint's files and open it.

    Raises:
        CheckpointError: something is missing, damaged, unsafe or does not fit together.
        OptionError: an option that does not apply to this kind of checkpoint.
        PrecisionError: the checkpoint is quantized already, by a scheme that cannot be loaded.
    """
    files = find_checkpoint(
        model, options.revision, options.allow_pickle, options.trust_remote_code
    )
    if options.revision is not None and files.revision is None:
        raise OptionError(f"--revision is for hub ids, and {model} is a local path")
    if files.kind != "adapter":
        if options.base is not None:
            raise OptionError(f"--base is for adapter folders, and {model} is a full checkpoint")
        return Source(files, None, options, keep)
    named = _adapter_base(files, options)
    base = find_checkpoint(named, None, options.allow_pickle, options.trust_remote_code)
    if base.kind == "adapter":
        raise CheckpointError(f"the base {base.path} is an adapter itself; merge it first")
    return Source(files, base, options, keep)


def _stored_scheme(files: CheckpointFiles) -> StoredScheme | None:
    if files.kind == "gguf":
        return None
    return stored_scheme(read_json(files.folder / "config.json"), files.path)


def _full_size(files: CheckpointFiles) -> int:
    """Bytes of the unquantized weights; a GGUF file's are unpacked into fp32."""
    if files.kind != "gguf":
        return files.size
    return sum(4 * elements for _, elements in gguf_tensors(files))


def _fits_in_memory(size: int) -> bool:
    """Whether the unquantized weights and one copy made from them fit beside each other."""
    import psutil

    return bool(psutil.virtual_memory().available > 2.5 * size)


def _adapter_base(files: CheckpointFiles, options: LoadOptions) -> str:
    if options.base is not None:
        return options.base
    named = read_json(files.folder / "adapter_config.json").get("base_model_name_or_path")
    if not options.allow_adapter_base:
        raise CheckpointError(
            f"{files.path} is an adapter; give its base model with --base PATH, or pass "
            f"--allow-adapter-base to load the one that its config names ({one_line(named, 80)})"
        )
    if not isinstance(named, str) or not named:
        raise CheckpointError(f"{files.path}: adapter_config.json names no base; pass --base PATH")
    log.warning(
        "--allow-adapter-base: the base %s is loaded because %s names it",
        one_line(named, 120),
        files.path,
    )
    return named
