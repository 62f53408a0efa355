"""SWEEP.yaml: checkpoints, conditions, tasks, references, options, resources; checked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from unlearnbench.conditions import resolve
from unlearnbench.errors import OptionError, TaskError, UnlearnbenchError, one_line
from unlearnbench.evaluation.options import Options
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.results import FULL
from unlearnbench.util.validation import YamlFile, read_yaml

# What a file that may be a stranger's cannot set: whether to trust files. And what the sweep sets.
CLOSED = {"trust_remote_code", "allow_pickle", "confirm_run_unsafe_code"}
_OURS = {"output", "reference", "drafts_from", "fresh", "progress", "explain"}
_UNITS = {"": 1, "B": 1}
_UNITS |= {f"{c}B": 1000 ** (n + 1) for n, c in enumerate("KMGT")}
_UNITS |= {f"{c}iB": 1024 ** (n + 1) for n, c in enumerate("KMGT")}


def _size(given: Any) -> Any:
    """Bytes: a number, or as 24GiB."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?([KMGT]?i?B?)", str(given))
    if found is None or found[2] not in _UNITS:
        raise ValueError("use a size, as 24GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def _several(given: Any) -> Any:
    """One value, or a list of them."""
    return given if isinstance(given, list) else [given]


def _mapped(given: Any) -> Any:
    return {"path": given} if isinstance(given, str) else given


Size = Annotated[int, BeforeValidator(_size), Field(gt=0)]
Word = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]
Part = Annotated[float, AfterValidator(lambda given: round(given, 4))]
"""As Ray counts: in parts of 1/10000."""
Words = Annotated[tuple[Word, ...], BeforeValidator(_several)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$", max_length=60)]


class _SweepPart(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Item(_SweepPart):
    """One line of ``checkpoints``: what is there already, or a recipe to train, as a grid."""

    name: Name | None = None
    """Of the checkpoint; for a glob or a grid, what all their names begin with."""
    path: Word | None = None
    """A folder, a ``.gguf`` file, a hub id, or a glob over folders."""
    method: Words = ()
    """A method of ``unlearn``, or the word finetune."""
    base: Words = ()
    """What is trained: the name of another checkpoint of this file, a folder or a hub id."""
    data: Words = ()
    """What finetune trains on: files or task:NAME."""
    forget: Words = ()
    retain: Words = ()
    auxiliary: Words = ()
    unseen: Words = ()
    alternative: Word | None = None
    spans: Word | None = None
    options: dict[str, Any] = {}
    """Options of the training and of its method; a list is an axis of the grid."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)

    @model_validator(mode="after")
    def _is_one(self) -> Item:
        if (self.path is None) == (not self.method):
            raise ValueError("give a path, or a method to train")
        if self.path is not None:
            more = self.model_fields_set - {"name", "path"}
            if more:
                raise ValueError(f"{min(more)}: is for a recipe, and this is a path")
            return self
        if not self.base:
            raise ValueError("base: is missing: what is trained")
        finetunes = [method == "finetune" for method in self.method]
        if any(finetunes) and not all(finetunes):
            raise ValueError("method: finetune stands alone, its texts are data")
        wanted, other = ("data", "forget") if all(finetunes) else ("forget", "data")
        if not getattr(self, wanted):
            raise ValueError(f"{wanted}: is missing: the texts")
        if getattr(self, other):
            raise ValueError(f"{other}: is not read by {self.method[0]}")
        return self


class References(_SweepPart):
    """The names of the two models that all others are held against."""

    target: Name | None = None
    retrained: Name | None = None


class Resources(_SweepPart):
    """What one job takes of a node, and how often it is tried."""

    cpus: Part = Field(default=1.0, ge=0.01)
    """Cores: its threads, where one or more."""
    gpus: Part | None = Field(default=None, ge=0)
    """GPUs; below 1 several jobs share one. Absent: from the weights and ``gpu_memory``, else 0."""
    gpu_memory: Size | None = None
    """Of one GPU of the cluster, to estimate ``gpus`` by."""
    memory: Size | None = None
    """Main memory; absent: from the weights."""
    tries: int = Field(default=3, ge=1, le=100)
    """How often a job is begun whose worker, node or memory failed."""
    conditions_a_job: int | None = Field(default=None, ge=1)
    """Most conditions that one worker meets with one checkpoint; absent: all."""

    @model_validator(mode="after")
    def _whole(self) -> Resources:
        if self.gpus is not None and self.gpus > 1 and self.gpus != int(self.gpus):
            raise ValueError("gpus: above 1 it is a whole number")
        return self


class BoardRules(_SweepPart):
    """What is said on the board's page; the rest follows from the sweep."""

    title: Word = "A sweep's board"
    description: str = ""
    base_model: Word = "not stated"
    utility_floor: float = Field(default=UTILITY_FLOOR, ge=0, le=1)
    ranking: Words = ()
    """Tasks; absent: those where a low score, or one near zero, is good."""
    publish_texts: bool = False


class Sweep(_SweepPart):
    """A whole file."""

    output: Word
    """The folder that gets everything, the same for all nodes; or s3://BUCKET/PREFIX."""
    checkpoints: tuple[Annotated[Item, BeforeValidator(_mapped)], ...] = Field(min_length=1)
    conditions: Annotated[Words, Field(min_length=1)] = (FULL,)
    tasks: Annotated[Words, Field(min_length=1)]
    references: References = References()
    options: dict[str, Any] = {}
    """Of the evaluation, as the command line has them: limit, dtype, data_dir, ..."""
    resources: Resources = Resources()
    board: BoardRules = BoardRules()

    @model_validator(mode="after")
    def _fits(self) -> Sweep:
        for key in self.options:
            if key in CLOSED:
                raise ValueError(f"options.{key}: cannot be set in a file")
            if key in _OURS:
                raise ValueError(f"options.{key}: is the sweep's own")
        return self


def read_sweep(path: Path) -> tuple[Sweep, YamlFile]:
    """A file as a sweep, and where each of its keys stands. Conditions have their full names.

    Raises:
        OptionError: it cannot be read, or a key or value is wrong; says the line.
    """
    try:
        file = read_yaml(path)
    except TaskError as error:
        raise OptionError(str(error)) from None
    try:
        sweep = Sweep.model_validate(file.value)
    except ValidationError as error:
        raise OptionError(file.fault(error)) from None
    try:
        Options.of(sweep.options)
    except UnlearnbenchError as error:
        raise OptionError(f"{file.where('options')}: options: {one_line(error)}") from None
    try:
        names = [spec.name for spec in resolve(sweep.conditions)]
    except UnlearnbenchError as error:
        raise OptionError(f"{file.where('conditions')}: {one_line(error)}") from None
    # Full precision first: the others' references and the comparison begin there.
    full = sorted(names, key=lambda name: name != FULL)
    return sweep.model_copy(update={"conditions": tuple(full)}), file
