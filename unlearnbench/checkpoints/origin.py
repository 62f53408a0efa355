"""What results record of a checkpoint: its hashes, its base, and how its weights came about.

The last stands in ``unlearning.json`` where our own training wrote them. A stranger may have
written that too, so it is checked like any other file.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unlearnbench.checkpoints.find import CheckpointFiles, read_json
from unlearnbench.checkpoints.load import load_tokenizer, named_ends, tokenizer_sha256
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.packed import StoredScheme
from unlearnbench.errors import CheckpointError
from unlearnbench.results import Checkpoint, Sha256
from unlearnbench.util.files import content_sha256
from unlearnbench.util.validation import as_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FILE = "unlearning.json"
FORMAT_VERSION: Literal[1] = 1

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]


class _Part(BaseModel):
    model_config = Checkpoint.model_config


class SourceRecord(_Part):
    """One source of texts."""

    role: Literal["forget", "retain", "auxiliary", "data"]
    source: str
    """As given: a file or task:NAME."""
    rows: int = Field(gt=0)
    sha256: Sha256
    """``data.rows_sha256`` of its rows."""


class LossRecord(_Part):
    """One optimizer step. Terms are weighted: they add up to ``loss``."""

    stage: Word
    step: int = Field(gt=0)
    loss: float
    forget: float | None = None
    retain: float | None = None
    auxiliary: float | None = None
    grad_norm: float | None = None
    lr: float


class MaskRecord(_Part):
    """What a mask let change; the map itself is ``NAME_mask.safetensors``, as sure's."""

    rows: int = Field(gt=0)
    """Rows of all matrices that a mask can choose from."""
    chosen_rows: int = Field(gt=0)
    weights: int = Field(gt=0)
    chosen_weights: int = Field(gt=0)


class Evaluated(_Part):
    """One evaluated checkpoint of the training, by task: value, or AUC where there is no value."""

    step: int = Field(gt=0)
    scores: dict[str, float]


class Selection(_Part):
    """How the checkpoint was chosen."""

    rule: str
    task: str
    threshold: float
    """The retrained model's score."""
    evaluated: tuple[Evaluated, ...] = Field(strict=False)
    chosen_step: int = Field(gt=0)
    reached: bool
    """False: no checkpoint met the rule, and the last one stands."""


class TrainingOptions(_Part):
    """The options of a training; those that are named here stand in results."""

    model_config = ConfigDict(**Checkpoint.model_config | {"extra": "allow"})

    lr: float = Field(gt=0)
    weights_dtype: Literal["auto", "fp32", "bf16"]
    seed: int = Field(ge=0, lt=2**31)


class Training(_Part):
    """Everything that a training was given, and its losses."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["unlearn", "finetune"]
    method: Word
    knobs: dict[str, float | int | str | bool] = {}
    """The method's own numbers, defaults filled in."""
    options: TrainingOptions
    processes: int = Field(gt=0)
    target: Checkpoint
    data: tuple[SourceRecord, ...] = Field(strict=False)
    sequences: dict[str, int]
    """Token sequences by role, after long texts were cut."""
    max_length: int = Field(gt=0)
    losses: tuple[LossRecord, ...] = Field(strict=False)
    mask: MaskRecord | None = None
    selection: Selection | None = None
    packages: dict[str, str]
    unlearnbench: str
    git_hash: str | None = None
    source_sha256: Sha256
    seconds: float = Field(ge=0)
    """Of this call; a resumed training's earlier part is not in it."""
    created: str


def read_origin(folder: Path) -> dict[str, str]:
    """What results say of how the weights in ``folder`` came about; empty where nothing is known.

    Raises:
        CheckpointError: the record is there, and damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    training = as_model(path, read_json(path), Training, CheckpointError)
    facts: dict[str, object] = {
        "method": training.method,
        "target_sha256": training.target.weights_sha256,
        "lr": f"{training.options.lr:g}",
        "seed": training.options.seed,
        "weights_dtype": training.options.weights_dtype,
        "steps": training.losses[-1].step if training.losses else 0,
    }
    return {name: str(value) for name, value in (facts | training.knobs).items()}


def describe_checkpoint(
    files: CheckpointFiles,
    full: CheckpointFiles,
    config: Any,
    tokenizer: PreTrainedTokenizerBase,
    options: LoadOptions,
    stored: StoredScheme | None,
) -> Checkpoint:
    """Hashes and origin of a checkpoint. ``full``: an adapter's base, else ``files`` themselves.

    Raises:
        CheckpointError: a file cannot be read, or ``unlearning.json`` is damaged.
    """
    weights = files.weights_sha256
    facts = Checkpoint(
        path=files.path,
        revision=files.revision,
        format=files.kind,
        weights_sha256=weights,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        config_sha256=content_sha256(_config_facts(files, full, config)),
        origin=_weights_origin(full, stored) | read_origin(files.folder),
    )
    if full is files:
        return facts
    try:
        base_tokenizer = load_tokenizer(full, full, options.trust_remote_code)
    except CheckpointError:  # a base without a tokenizer, where the adapter brings its own
        base_tokenizer = tokenizer
    base = Checkpoint(
        path=full.path,
        revision=full.revision,
        format=full.kind,
        weights_sha256=full.weights_sha256,
        tokenizer_sha256=tokenizer_sha256(base_tokenizer),
    )
    return facts.model_copy(
        update={
            "weights_sha256": content_sha256([weights, base.weights_sha256]),
            "adapter": {"merge": "merged", "keep": "kept"}[options.adapter],
            "base": base,
        }
    )


def _config_facts(files: CheckpointFiles, full: CheckpointFiles, config: Any) -> dict[str, object]:
    """The config, and an adapter's, without what changes from one saving to the next and does not
    change the model; and the ends of texts where ``generation_config.json`` has others.
    """
    facts: dict[str, object] = json.loads(config.to_json_string(use_diff=False))
    try:
        named = read_json(full.folder / "generation_config.json").get("eos_token_id")
    except CheckpointError:  # not there, or damaged: transformers takes config.json's
        named = facts.get("eos_token_id")
    if named_ends(named) != named_ends(facts.get("eos_token_id")):
        facts["generation_eos_token_id"] = named_ends(named)
    if files.kind == "adapter":
        adapter = read_json(files.folder / "adapter_config.json")
        for key in ("base_model_name_or_path", "revision", "peft_version", "inference_mode"):
            adapter.pop(key, None)
        # PEFT keeps lists of modules as sets and writes them in any order.
        facts["adapter"] = {
            key: sorted(map(str, value)) if isinstance(value, list) else value
            for key, value in adapter.items()
            if value is not None
        }
    for key in ("_name_or_path", "_model_name_or_path", "transformers_version"):
        facts.pop(key, None)
    return facts


def _weights_origin(full: CheckpointFiles, stored: StoredScheme | None) -> dict[str, str]:
    """Weights that come from a 4-bit grid are not full precision: a GGUF file's tensor types, or
    the scheme that a checkpoint is quantized in.
    """
    if stored is not None:
        return {"quantized": f"{stored.bits:g} bits, {stored.text}"}
    if full.kind != "gguf":
        return {}
    types = Counter(tensor.dtype for tensor in full.tensors.values())
    return {"gguf_tensor_types": ", ".join(f"{n} {name}" for name, n in sorted(types.items()))}
