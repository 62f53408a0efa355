"""``unlearning.json``: how an output folder's weights came about. Written last, so its presence
says that the training is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from unlearnbench.errors import CheckpointError, TrainingError
from unlearnbench.results import Checkpoint
from unlearnbench.training.options import TrainOptions
from unlearnbench.util.files import read_model, write_whole, writing

FILE = "unlearning.json"
FORMAT_VERSION: Literal[1] = 1
_MAX_BYTES = 64 * 2**20

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]


class _File(BaseModel):
    model_config = Checkpoint.model_config


class SourceRecord(_File):
    """One source of texts."""

    role: Literal["forget", "retain", "data"]
    source: str
    """As given: a file or task:NAME."""
    rows: int = Field(gt=0)
    sha256: Sha256
    """``data.rows_sha256`` of its rows."""


class LossRecord(_File):
    """One optimizer step. Terms are weighted: they add up to ``loss``."""

    stage: Word
    step: int = Field(gt=0)
    loss: float
    forget: float | None = None
    retain: float | None = None
    grad_norm: float | None = None
    lr: float


class MaskRecord(_File):
    """What a mask let change; the map itself is ``sure_mask.safetensors``."""

    rows: int = Field(gt=0)
    """Rows of all matrices that a mask can choose from."""
    chosen_rows: int = Field(gt=0)
    weights: int = Field(gt=0)
    chosen_weights: int = Field(gt=0)


class Evaluated(_File):
    """One evaluated checkpoint of the training, by task: value, or AUC where there is no value."""

    step: int = Field(gt=0)
    scores: dict[str, float]


class Selection(_File):
    """How the checkpoint was chosen."""

    rule: str
    task: str
    threshold: float
    """The retrained model's score."""
    evaluated: tuple[Evaluated, ...] = Field(strict=False)
    chosen_step: int = Field(gt=0)
    reached: bool
    """False: no checkpoint met the rule, and the last one stands."""


class Training(_File):
    """Everything that a training was given, and its losses."""

    format_version: Literal[1] = FORMAT_VERSION
    kind: Literal["unlearn", "finetune"]
    method: Word
    knobs: dict[str, float | int | str] = {}
    """The method's own numbers, defaults filled in."""
    options: TrainOptions
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


def write_json(path: Path, value: BaseModel) -> None:
    """Write a file whole or not at all.

    Raises:
        TrainingError: it cannot be written.
    """
    text = json.dumps(value.model_dump(mode="json", exclude_none=True), indent=1, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """As ``write_json``, for text."""
    with writing(path, TrainingError, "free some space and try again"):
        write_whole(path, text.encode("utf-8", errors="backslashreplace"))


def read_training(folder: Path) -> Training | None:
    """The record of a checkpoint folder; None where it has none.

    Raises:
        CheckpointError: it is there, and damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    return read_model(path, Training, CheckpointError, _MAX_BYTES)


def origin_of(training: Training) -> dict[str, str]:
    """What a result says of how the weights came about, for ``Checkpoint.origin``."""
    kept = training.options
    facts: dict[str, object] = {
        "method": training.method,
        "target_sha256": training.target.weights_sha256,
        "lr": f"{kept.lr:g}",
        "seed": kept.seed,
        "weights_dtype": kept.weights_dtype,
        "steps": training.losses[-1].step if training.losses else 0,
    }
    facts |= training.knobs
    return {name: str(value) for name, value in facts.items()}
