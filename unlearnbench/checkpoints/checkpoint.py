"""One checkpoint whose files were checked: its weights are read once, and every condition is made
from them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.adapter import attach_adapter, check_adapter_config, merge_adapter
from unlearnbench.checkpoints.find import (
    SCHEMES,
    CheckpointFiles,
    find_checkpoint,
    is_quantized,
    read_json,
)
from unlearnbench.checkpoints.limits import check_size, empty_model, require_memory
from unlearnbench.checkpoints.load import (
    check_loading,
    check_tokenizer,
    device_map,
    load_config,
    load_tokenizer,
    load_weights,
    require_gguf_support,
    stored_dtype,
)
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import describe_checkpoint
from unlearnbench.checkpoints.packed import load_packed, stored_scheme
from unlearnbench.checkpoints.patterns import check_patterns
from unlearnbench.errors import CheckpointError, OptionError, PrecisionError, one_line
from unlearnbench.util.process import quiet_transformers

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

log = logging.getLogger("unlearnbench")

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class CheckpointSource:
    """A checkpoint whose files were checked; its weights load on first use.

    ``base``: the files of the base model, where ``files`` are an adapter's. ``keep`` holds the
    unquantized model in memory between conditions; otherwise its files are read again for each.
    """

    ensemble: None = None
    """Not several that answer together."""

    def __init__(
        self,
        files: CheckpointFiles,
        base: CheckpointFiles | None,
        options: LoadOptions,
        keep: bool,
    ) -> None:
        self.files, self.options = files, options
        self.full = full = base or files
        """The files with the config and the full weights."""
        self.held: PreTrainedModel | None = None
        """The unquantized model, where it was read and not let go."""
        quiet_transformers()
        is_gguf = full.kind == "gguf"
        if is_gguf:
            require_gguf_support()
        size = 4 * full.elements if is_gguf else full.size  # GGUF is unpacked into fp32
        require_memory(size, full.path)
        self._keep = keep and _fits_in_memory(size)
        self.config = load_config(full, options.trust_remote_code)
        raw = {} if is_gguf else read_json(full.folder / "config.json")
        self.stored = stored_scheme(raw, full.path) if is_quantized(raw) else None
        _check_asked(files, full, self.config, raw)
        self.tokenizer = load_tokenizer(files, full, options.trust_remote_code)
        check_tokenizer(self.tokenizer, self.config, files)
        if self.stored is not None and base is not None and options.adapter == "merge":
            raise PrecisionError(
                f"the base {base.path} is quantized already ({self.stored.text}), and nothing can "
                "be merged into it; use --adapter keep"
            )
        self.checkpoint = describe_checkpoint(
            files, full, self.config, self.tokenizer, options, self.stored
        )

    @property
    def parts(self) -> tuple[CheckpointSource]:
        """Itself alone."""
        return (self,)

    @property
    def own_dtype(self) -> str:
        """The short name of the dtype that most of the weights are stored in, whatever the config
        says; a GGUF file is dequantized into fp32. Raises CheckpointError for one that cannot be
        computed in.
        """
        if self.full.kind == "gguf":
            return "fp32"
        name = stored_dtype(self.full)
        short = {long: short for short, long in DTYPES.items()}.get(name)
        if short is None:
            raise CheckpointError(f"{self.files.path} is stored as {name}; save it as bfloat16")
        return short

    @property
    def adapter_kept(self) -> bool:
        """Whether an adapter has to be attached to the quantized base."""
        return self.files.kind == "adapter" and self.options.adapter == "keep"

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
        if self.held is None:
            model = load_weights(self.full, self.config, self.options.trust_remote_code)
            if self.files.kind == "adapter" and not self.adapter_kept:
                model = merge_adapter(model, self.files)
            self.held = model
        return self.held

    def build(
        self,
        dtype: torch.dtype,
        device: str,
        *,
        state: dict[str, torch.Tensor] | None = None,
        quantization_config: Any = None,
    ) -> PreTrainedModel:
        """Make a new model from the weights (or from ``state``), through transformers' own loading
        path, so that a precision is what its users get. Raises CheckpointError where it fails.
        """
        own = self.model()
        try:
            loaded: Any = type(own).from_pretrained(
                None,
                config=copy.deepcopy(own.config),
                state_dict=dict(own.state_dict()) if state is None else state,
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
        model.generation_config = own.generation_config  # not from a folder, so not found
        return model.eval()  # type: ignore[no-any-return]

    def load_stored(self, dtype: torch.dtype, device: str) -> PreTrainedModel:
        """A checkpoint that is quantized already, loaded as it is. Raises: as ``load_packed``."""
        trusted = self.options.trust_remote_code
        return load_packed(self.full, self.config, trusted, dtype, device)

    def finish(self, model: PreTrainedModel) -> PreTrainedModel:
        """Attach the adapter to its quantized base where it is kept; else return the model. Raises
        CheckpointError where the adapter does not fit.
        """
        if not self.adapter_kept:
            return model
        adapted: PreTrainedModel = attach_adapter(model, self.files).eval()
        return adapted

    def release(self) -> None:
        """Drop the weights from memory, unless they are kept for the next condition."""
        if not self._keep:
            self.held = None


def _check_asked(
    files: CheckpointFiles, full: CheckpointFiles, config: Any, raw: Mapping[str, object]
) -> None:
    """Hold what the configs ask for against what is stored, before anything is made of it. raw:
    what stands in ``config.json``.
    """
    packed = is_quantized(raw)
    model = empty_model(config)
    names: list[str] = []
    if model is not None:
        stored = 8 * full.size if packed else full.elements  # a byte holds 8 weights at most
        exact = not packed and full.kind != "pickle"
        check_size(model, full.path, stored, full.size, exact)
        names = [name for name, _ in [*model.named_modules(), *model.named_parameters()]]
    if packed:
        schemes = [raw.get(key) for key in SCHEMES]
        check_patterns(schemes, names, f"{full.path}: quantization_config")
    if files.kind == "adapter":
        check_adapter_config(files, names)


def open_checkpoint(model: str, options: LoadOptions, keep: bool = True) -> CheckpointSource:
    """Check the files of one checkpoint and open it.

    Raises:
        CheckpointError: something is missing, damaged, unsafe or does not fit together.
        OptionError: an option that does not apply to this kind of checkpoint.
        PrecisionError: the checkpoint is quantized already, by a scheme that cannot be loaded.
    """
    files = find_checkpoint(model, options, options.revision)
    if options.revision is not None and files.revision is None:
        raise OptionError(f"--revision is for hub ids, and {model} is a local path")
    if files.kind != "adapter":
        if options.base is not None:
            raise OptionError(f"--base is for adapter folders, and {model} is a full checkpoint")
        return CheckpointSource(files, None, options, keep)
    base = find_checkpoint(_adapter_base(files, options), options)
    if base.kind == "adapter":
        raise CheckpointError(f"the base {base.path} is an adapter itself; merge it first")
    return CheckpointSource(files, base, options, keep)


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


def _fits_in_memory(size: int) -> bool:
    """Whether the unquantized weights and one copy made from them fit beside each other."""
    import psutil

    return bool(psutil.virtual_memory().available > 2.5 * size)
