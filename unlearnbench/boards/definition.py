"""``board.yaml``: what every entry of a board must hold, and how entries are ranked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearnbench.errors import OptionError
from unlearnbench.results import FULL
from unlearnbench.tasks.registry import Registry, load_registry
from unlearnbench.util.validation import read_yaml_model

Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


class Definition(BaseModel):
    """The content of ``board.yaml``."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    title: str = Field(min_length=1)
    description: str = ""
    base_model: str
    """What the target was trained from, in words."""
    protocol: str = "muse"
    tasks: dict[str, float] = Field(min_length=1)
    """Every task with its version."""
    precisions: Names
    """Every entry but the retrained model's needs a run at each; ``none`` is one of them."""
    utility_floor: float = Field(ge=0, le=1)
    ranking: Names
    """The tasks whose excess over the retrained model ranks entries by its worst case."""
    min_samples: int = Field(default=1, ge=1)
    publish_texts: bool = False
    """Whether prompts, outputs and references may be published; else entries carry hashes."""

    @model_validator(mode="after")
    def _fits(self) -> Definition:
        unknown = sorted(set(self.ranking) - set(self.tasks))
        if unknown:
            raise ValueError(f"ranking: {unknown[0]} is not in tasks")
        if FULL not in self.precisions:
            raise ValueError(f"precisions: {FULL}, full precision, is missing")
        return self


@dataclass(frozen=True)
class Board:
    """A board's folder and its definition."""

    folder: Path
    rules: Definition

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def entries(self) -> Path:
        """Where the entries' JSON files are."""
        return self.folder / "entries"

    def registry(self) -> Registry:
        """The package's tasks and those of the board's own ``tasks`` folder.

        Raises:
            TaskError: one of its files is wrong.
        """
        own = self.folder / "tasks"
        return load_registry([own] if own.is_dir() else [])


def read_board(folder: Path) -> Board:
    """Read a board's definition.

    Raises:
        OptionError: there is none, or it is wrong; says the line.
    """
    path = folder / "board.yaml"
    if not path.is_file():
        raise OptionError(f"{folder}: no board.yaml there")
    return Board(folder, read_yaml_model(path, Definition))


def find_boards(folders: Sequence[Path]) -> list[Board]:
    """The boards that are given, or those below a folder of boards.

    Raises:
        OptionError: a definition is wrong, or a folder has no board.
    """
    found: list[Path] = []
    for folder in folders:
        files = [*folder.glob("board.yaml")] or sorted(folder.glob("*/board.yaml"))
        if not files:
            raise OptionError(f"{folder}: no board.yaml there or below")
        found += [file.parent for file in files]
    return [read_board(folder) for folder in found]
