"""Several checkpoints in one folder that answer as one model: the file that says which, and how.

``whp.json`` is Who's Harry Potter's, with its two models; any other method's is ``ensemble.json``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.checkpoints.find import ENSEMBLE_FILE, PAIR_FILE, PARTS, read_json
from unlearnbench.errors import CheckpointError, one_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")
_MOST = 64


@dataclass(frozen=True)
class EnsembleFacts:
    """Which models answer together, and how their logits become one model's."""

    method: str
    """The whole method whose ``combine`` joins the logits."""
    models: tuple[str, ...]
    """Their folders."""
    numbers: Mapping[str, float]
    """What ``combine`` needs to know."""


def find_ensemble(model: str) -> Path | None:
    """The file of the ensemble that ``model`` names; None where it names none."""
    try:
        files = [Path(model).expanduser() / name for name in (PAIR_FILE, ENSEMBLE_FILE)]
        return next((path for path in files if path.is_file()), None)
    except (OSError, RuntimeError, ValueError):  # no path at all, which opening it will say
        return None


def read_ensemble(path: Path) -> EnsembleFacts:
    """What the file says.

    Raises:
        CheckpointError: it is damaged.
    """
    content: dict[str, Any] = read_json(path)
    known = {"alpha"} if path.name == PAIR_FILE else {"method", "models", "numbers"}
    if content.get("format_version") != 1 or set(content) != {"format_version", *known}:
        raise CheckpointError(f"{path} is of an unknown format")
    if path.name == PAIR_FILE:
        facts = EnsembleFacts("whp", PARTS, {"alpha": _finite(path, "alpha", content["alpha"])})
        if facts.numbers["alpha"] < 0:
            raise CheckpointError(f"{path}: alpha {facts.numbers['alpha']:g} is negative")
        return facts
    method, models, numbers = content["method"], content["models"], content["numbers"]
    names = [method, *models] if isinstance(models, list) else []
    if not 2 < len(names) <= _MOST:
        raise CheckpointError(f"{path}: models is no list of 2 to {_MOST - 1} names")
    if not all(isinstance(name, str) and _NAME.fullmatch(name) for name in names):
        raise CheckpointError(f"{path}: its method and models are no plain names")
    if len(set(models)) < len(models):
        raise CheckpointError(f"{path}: models names one twice")
    if not isinstance(numbers, dict) or len(numbers) > _MOST:
        raise CheckpointError(f"{path}: numbers is no short mapping")
    return EnsembleFacts(
        method, tuple(models), {name: _finite(path, name, n) for name, n in numbers.items()}
    )


def _finite(path: Path, name: str, value: object) -> float:
    try:
        number = float(value) if type(value) in (int, float) else math.nan  # type: ignore[arg-type]
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise CheckpointError(f"{path}: {one_line(name, 80)} is no finite number")
    return number


def write_ensemble(folder: Path, facts: EnsembleFacts) -> None:
    """Mark a folder that holds all models as an ensemble."""
    file, content = PAIR_FILE, dict[str, Any](facts.numbers)
    if facts.method != "whp":
        file = ENSEMBLE_FILE
        content = {"method": facts.method, "models": facts.models, "numbers": facts.numbers}
    text = json.dumps({"format_version": 1, **content})
    (folder / file).write_text(text + "\n", encoding="utf-8")
