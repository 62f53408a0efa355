"""What ``--model`` names, opened: one checkpoint, or several that answer as one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, Field, field_validator

from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.find import ENSEMBLE_FILE, PAIR_FILE, check_folder, read_json
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, read_origin
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.results import Checkpoint, Sha256
from unlearnbench.util.files import content_sha256
from unlearnbench.util.validation import as_model

SHARDED = "sisa"
"""The method whose models are the shards of a plan."""
_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$")]


class _PairFile(BaseModel):
    model_config = Checkpoint.model_config

    format_version: Literal[1]
    alpha: float = Field(ge=0)


class EnsembleFacts(BaseModel):
    """Which models answer together, and how their logits become one model's."""

    model_config = Checkpoint.model_config

    format_version: Literal[1] = 1
    method: _Name
    """The whole method whose ``combine`` joins the logits."""
    models: tuple[_Name, ...] = Field(min_length=1, max_length=63, strict=False)
    """Their folders."""
    numbers: dict[str, float] = Field(max_length=64)
    """What ``combine`` needs to know."""
    states: dict[_Name, Sha256] = Field(default={}, max_length=63 * 64)
    """By folder, the hash of its weights as the training left them: of shards, and of the states
    that a deletion goes back to.
    """

    @field_validator("models")
    @classmethod
    def _differ(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(models)) < len(models):
            raise ValueError("names one model twice")
        return models


def read_ensemble(path: Path) -> EnsembleFacts:
    """What the file says. Raises CheckpointError where it is damaged."""
    content = read_json(path)
    if path.name == ENSEMBLE_FILE:
        return as_model(path, content, EnsembleFacts, CheckpointError)
    pair = as_model(path, content, _PairFile, CheckpointError)
    models = ("baseline", "reinforced")
    return EnsembleFacts(method="whp", models=models, numbers={"alpha": pair.alpha})


def write_ensemble(folder: Path, facts: EnsembleFacts) -> None:
    """Mark a folder that holds all models as an ensemble."""
    name, content = ENSEMBLE_FILE, facts.model_dump(exclude_defaults=True)
    content["format_version"] = facts.format_version
    if facts.method == "whp":
        name, content = PAIR_FILE, {"format_version": 1, **facts.numbers}
    (folder / name).write_text(json.dumps(content) + "\n", encoding="utf-8")


class EnsembleSource:
    """Open checkpoints of one shape and tokenizer, in folders beside ``path``, the file that says
    how they answer together; CheckpointError where they do not.
    """

    def __init__(self, model: str, path: Path, options: LoadOptions, keep: bool) -> None:
        if options.revision is not None:
            raise OptionError(f"{model} holds several checkpoints; leave --revision out")
        folder, record = path.parent, path.parent / FILE
        check_folder(folder)
        self.options = options
        self.ensemble = facts = read_ensemble(path)
        paths = [str(folder / part) for part in facts.models]
        self.parts = tuple(open_checkpoint(path, options, keep) for path in paths)
        for what, name in (("tokenizer", "tokenizer_probe"), ("config", "config")):
            if len({getattr(part.checkpoint, f"{name}_sha256") for part in self.parts}) > 1:
                raise CheckpointError(
                    f"{model}: its checkpoints differ in {what}; their logits cannot be combined"
                )
        if len(kinds := {part.own_dtype for part in self.parts}) > 1:
            raise CheckpointError(
                f"{model}: its checkpoints are stored as {' and '.join(sorted(kinds))}; save "
                "all in one dtype, else some would be rounded and others not"
            )
        # One config for all, so what it says of packed weights holds for all.
        first = self.parts[0]
        self.config, self.tokenizer = first.config, first.tokenizer
        self.files, self.stored = first.files, first.stored
        # Who's Harry Potter's hash is as results of earlier releases have it.
        how: list[object] = [facts.method, facts.numbers]
        if facts.method == "whp":
            how = [facts.numbers["alpha"]]
        if facts.method == SHARDED or facts.states:
            from unlearnbench.checkpoints.shard_plan import require_planned

            how += [facts.states, require_planned(folder, facts.models, facts.states)]
        weights = [part.checkpoint.weights_sha256 for part in self.parts]
        origin = first.checkpoint.origin | (read_origin(record) if record.is_file() else {})
        digest = content_sha256([*weights, *how])
        own = {"path": model, "weights_sha256": digest, "origin": origin}
        self.checkpoint = first.checkpoint.model_copy(update=own)

    @property
    def own_dtype(self) -> str:
        return self.parts[0].own_dtype

    def release(self) -> None:
        for part in self.parts:
            part.release()


Source: TypeAlias = CheckpointSource | EnsembleSource
"""An open checkpoint, or several that answer as one model."""
