"""``unlearning.json``: how the weights beside it came about; a stranger's, so it is checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from unlearnbench.checkpoints.find import read_json
from unlearnbench.errors import CheckpointError
from unlearnbench.results import Checkpoint, Sha256
from unlearnbench.util.files import content_sha256
from unlearnbench.util.validation import as_model

FILE = "unlearning.json"

Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]*$", max_length=100)]


class _Part(BaseModel):
    model_config = Checkpoint.model_config


class SourceRecord(_Part):
    """One source of texts."""

    role: Literal[
        "forget", "retain", "auxiliary", "alternatives", "spans", "anchors", "unseen", "data"
    ]
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
    """What a mask let change; the map itself is ``masks/NAME_mask.safetensors``."""

    rows: int = Field(gt=0)
    """Rows of all matrices that a mask can choose from."""
    chosen_rows: int = Field(gt=0)
    weights: int = Field(gt=0)
    chosen_weights: int = Field(gt=0)


class Evaluated(_Part):
    """One evaluated checkpoint of the training, by task: value, or AUC where there is no value."""

    step: int = Field(gt=0)
    scores: dict[str, float]
    conditions: dict[str, dict[str, float]] | None = None
    """The same at each condition of --survive; None: it was not asked for."""


class Selection(_Part):
    """How the checkpoint was chosen."""

    rule: str
    task: str
    threshold: float
    """The retrained model's score."""
    rows: Annotated[int, Field(gt=0)] | Literal["all"] | None = None
    """The first so many rows of each split were looked at; earlier releases do not say."""
    evaluated: tuple[Evaluated, ...] = Field(strict=False, min_length=1)
    chosen_step: int = Field(gt=0)
    reached: bool
    """False: no checkpoint met the rule, and the last one stands."""

    def __str__(self) -> str:
        """Which scores the choice has seen."""
        seen = "rows not recorded" if self.rows is None else f"first {self.rows} rows"
        says = f"{self.task}, {'all rows' if self.rows == 'all' else seen}"
        says += "".join(f", at {name} too" for name in self.evaluated[0].conditions or ())
        return says if self.reached else f"{says}, never low enough: the last step"


class ChunkRecord(_Part):
    """The end of the training on one chunk of the forget set."""

    sequences: int = Field(gt=0)
    steps: int = Field(gt=0)
    el: float
    ma: float
    reached: bool


class StopRecord(_Part):
    """The rule that stopped a training: EL_n and MA at or below those of unseen texts."""

    n: int = Field(gt=0)
    el: float
    ma: float
    rows: int = Field(gt=0)
    """Sequences of unseen texts."""
    chunks: tuple[ChunkRecord, ...] = Field(strict=False)


class RepairRecord(_Part):
    """How weights were mended after a training; see docs/repair.md."""

    strategy: Literal["grid", "concentrated", "floor"]
    strength: float = Field(gt=0)
    """The share of the update's projection that is kept."""
    precisions: tuple[Word, ...] = Field(strict=False, min_length=1)
    """That it was mended for."""
    model: Checkpoint
    target: Checkpoint
    dtype: Literal["auto", "fp32", "bf16"]
    moved: int = Field(ge=0)
    """Weights that took a whole step."""
    weights: int = Field(gt=0)
    unlearnbench: str
    git_hash: str | None = None
    source_sha256: Sha256
    created: str

    def __str__(self) -> str:
        """How, in a line."""
        return f"{self.strategy} {self.strength:g} for {','.join(self.precisions)}"


class Repaired(_Part):
    """What stands in the file of a checkpoint that was mended and has no record of its training."""

    format_version: Literal[1] = 1
    kind: Literal["repair"] = "repair"
    repairs: tuple[RepairRecord, ...] = Field(strict=False, min_length=1)


class TrainingOptions(_Part):
    """The options of a training; those that are named here stand in results."""

    model_config = ConfigDict(**Checkpoint.model_config | {"extra": "allow"})
    __pydantic_extra__: dict[str, float | int | str | bool]

    lr: float = Field(gt=0)
    weights_dtype: Literal["auto", "fp32", "bf16", "bf16-rounded", "bf16-sr"]
    seed: int = Field(ge=0, lt=2**31)


class CodeChange(_Part):
    """What quantization leaves of a training's change of some weights."""

    weights: int = Field(gt=0)
    changed: float = Field(ge=0, le=1)
    """The share of weights that have another code than the target's."""
    size: float | None = Field(default=None, ge=0)
    """|Q(U) - Q(T)| / |U - T|; None: nothing was updated."""


class CodeRecord(CodeChange):
    """The same of all weights together at one precision, and by module, over all blocks."""

    precision: Word
    modules: dict[str, CodeChange]


class Training(_Part):
    """Everything that a training was given, and its losses."""

    format_version: Literal[1] = 1
    kind: Literal["unlearn", "finetune"]
    method: Word
    knobs: dict[str, float | int | str | bool] = {}
    """The method's own numbers, defaults filled in."""
    options: TrainingOptions
    processes: int = Field(gt=0)
    target: Checkpoint
    base: Checkpoint | None = None
    """The model that the target was made from, where the method was given it."""
    data: tuple[SourceRecord, ...] = Field(strict=False)
    sequences: dict[str, int]
    """Token sequences by role, after long texts were cut."""
    max_length: int = Field(gt=0)
    losses: tuple[LossRecord, ...] = Field(strict=False)
    mask: MaskRecord | None = None
    selection: Selection | None = None
    stopping: StopRecord | None = None
    codes: tuple[CodeRecord, ...] | None = Field(default=None, strict=False)
    """By precision; None: an adapter or several models, or not told."""
    packages: dict[str, str]
    unlearnbench: str
    git_hash: str | None = None
    source_sha256: Sha256
    seconds: float = Field(ge=0)
    """Of this call; a resumed training's earlier part is not in it."""
    created: str
    repairs: tuple[RepairRecord, ...] = Field(default=(), strict=False)
    """What was done to the weights since."""

    @property
    def recipe(self) -> str:
        """The same for trainings that were given the same but for the seed, whatever came out.

        Not of the versions of code and packages, nor of options that cannot move a weight.
        """
        given: dict[str, object] = self.model_dump(
            mode="json",
            include={"kind", "method", "knobs", "options", "processes", "max_length"},
            exclude={"options": {"seed", "save_steps", "gradient_checkpointing"}},
        )
        given["target"] = self.target.weights_sha256
        if self.target.tokenizer is not None:
            given["tokenizer"] = self.target.tokenizer_probe_sha256
        if self.base is not None:
            given["base"] = self.base.weights_sha256
        given["data"] = [(part.role, part.sha256) for part in self.data]
        if (chosen := self.selection) is not None:  # its first step is how often it looks
            rule = (chosen.rule, chosen.task, chosen.threshold, chosen.rows)
            given["selection"] = (*rule, chosen.evaluated[0].step)
        if self.repairs:
            given["repairs"] = [str(repair) for repair in self.repairs]
        return content_sha256(given)[:16]


def read_record(path: Path) -> Training | Repaired:
    """What the file holds. Raises CheckpointError where it is damaged."""
    content = read_json(path)
    kind: type[Training | Repaired] = Repaired if content.get("kind") == "repair" else Training
    return as_model(path, content, kind, CheckpointError)


def read_origin(path: Path) -> dict[str, str]:
    """What results say of how the weights came about; CheckpointError where it is damaged."""
    training = read_record(path)
    repaired = {"repaired": "; ".join(map(str, training.repairs))} if training.repairs else {}
    if isinstance(training, Repaired):
        return repaired
    facts: dict[str, object] = {
        "method": training.method,
        "target_sha256": training.target.weights_sha256,
        "lr": f"{training.options.lr:g}",
        "seed": training.options.seed,
        "weights_dtype": training.options.weights_dtype,
        "steps": training.losses[-1].step if training.losses else 0,
    }
    facts |= training.knobs
    given = training.options.model_dump().items()
    facts |= {n: v for n, v in given if n.startswith("survive") or (n == "weight_noise" and v)}
    facts["recipe"] = training.recipe
    if training.selection is not None:
        facts["selected"] = training.selection
    return {name: str(value) for name, value in facts.items()} | repaired
