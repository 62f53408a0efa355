from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoints.helpers import load
from unlearnbench.models.hf import HFModel


@pytest.fixture
def copy(tiny: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint that may be changed."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


@pytest.fixture(scope="module")
def plain(tiny: Path) -> HFModel:
    """The tiny checkpoint, loaded."""
    return load(tiny)


@pytest.fixture
def notes() -> Iterator[list[str]]:
    """What is logged at warning level or above."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("unlearnbench")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
