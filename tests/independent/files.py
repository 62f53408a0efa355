"""Runs and entries, read from their JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """One task of one model at one precision: scores by question, or who wins of each pair of
    texts, in points of 0 to 100.
    """

    want: str
    points: Array  # (n,), or (forget, holdout) of PrivLeak
    names: tuple[str, ...]
    empty: int | None

    @property
    def n(self) -> int:
        return len(self.points)

    @property
    def mean(self) -> float:
        return float(self.points.mean())


Cells = dict[tuple[str, str], Cell]  # by precision and task


@dataclass
class Model:
    name: str
    cells: Cells = field(default_factory=dict)
    recipe: str | None = None
    weights: str = ""

    @property
    def precisions(self) -> list[str]:
        return sorted({precision for precision, _ in self.cells})


def _cell(task: dict[str, Any], records: Sequence[dict[str, Any]], attack: str | None) -> Cell:
    empty = task.get("empty_outputs")
    if attack is None:
        points = np.array([100 * record["score"] for record in records])
        return Cell(task["want"], points, tuple(record["id"] for record in records), empty)
    sides: dict[str, list[float]] = {}
    for record in records:
        sides.setdefault(record["split"], []).append(record["scores"][attack])
    forget, holdout = sides["forget"], sides["holdout"]
    wins = np.zeros((len(forget), len(holdout)))
    for i, ours in enumerate(forget):
        for j, other in enumerate(holdout):
            # Lower looks more like training data.
            wins[i, j] = 100.0 if other < ours else 50.0 if other == ours else 0.0
    return Cell(task["want"], wins, tuple(record["id"] for record in records), empty)


def _add(model: Model, run: dict[str, Any], records: Callable[[str], list[dict[str, Any]]]) -> None:
    condition = (run.get("condition") or run["precision"])["name"]
    model.weights = run["checkpoint"]["weights_sha256"]
    model.recipe = (run["checkpoint"].get("origin") or {}).get("recipe")
    for name, task in run["tasks"].items():
        model.cells[condition, name] = _cell(task, records(name), task.get("attack"))


def read_runs(folder: Path, name: str = "") -> Model:
    """All runs of one checkpoint."""
    model = Model(name)
    for file in sorted(folder.rglob("run.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        model.name = name or Path(run["checkpoint"]["path"]).name
        samples = file.parent / "samples"

        def records(task: str, samples: Path = samples) -> list[dict[str, Any]]:
            lines = (samples / f"{task}.jsonl").read_text(encoding="utf-8").splitlines()
            return [json.loads(line) for line in lines]

        _add(model, run, records)
    return model


def read_entry(file: Path) -> tuple[Model, str]:
    """A board's entry and its role."""
    entry = json.loads(file.read_text(encoding="utf-8"))
    model = Model(entry["name"])
    first = entry["runs"][0]
    for number, one in enumerate(entry["runs"]):
        if entry["format_version"] == 3:
            run = _merged(first, one) if number else one
            tables = {task: _records(columns) for task, columns in run["samples"].items()}
            _add(model, run["run"], tables.__getitem__)
        else:
            _add(model, one["run"], one["samples"].__getitem__)
    return model, entry["role"]


def _merged(old: Any, new: Any) -> Any:
    """RFC 7396, as far as patches of objects go."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    both = {key: _merged(old.get(key), new.get(key, old.get(key))) for key in {**old, **new}}
    return {key: value for key, value in both.items() if key not in new or new[key] is not None}


def _records(columns: dict[str, Any]) -> list[dict[str, Any]]:
    """What figures are made of, out of columns of numbers."""
    rows = [
        (split, row)
        for split, words in columns["ids"].items()
        for first, _, last in (word.partition("-") for word in words.split())
        for row in range(int(first), int(last or first) + 1)
    ]
    records: list[dict[str, Any]] = [
        {"id": f"{split}/{row}", "split": split, "scores": {}} for split, row in rows
    ]
    if "score" in columns:
        for record, word in zip(records, columns["score"].split(), strict=True):
            record["score"] = _number(word)
    for name, column in columns.get("scores", {}).items():
        for record, word in zip(records, column.split(), strict=True):
            record["scores"][name] = _number(word)
    return records


def _number(word: str) -> float:
    top, _, bottom = word.partition("/")
    return float(top) / float(bottom or 1)
