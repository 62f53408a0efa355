"""Checkpoints for the tests of precisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import MakeCheckpoint
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a library writes where it stands does not end up in the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def source(tiny: Path) -> CheckpointSource:
    """The tiny Llama, opened."""
    return open_checkpoint(str(tiny), LoadOptions())


@pytest.fixture(scope="session")
def square(make_checkpoint: MakeCheckpoint) -> Path:
    """One layer, every matrix 128 x 128: fits every group size and AWQ's 64 rows."""
    shape = {"hidden_size": 128, "num_key_value_heads": 4, "num_hidden_layers": 1}
    return make_checkpoint("square", **shape)


@pytest.fixture(scope="session")
def square_source(square: Path) -> CheckpointSource:
    """The square one, opened."""
    return open_checkpoint(str(square), LoadOptions())
