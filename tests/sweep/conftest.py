"""Checkpoints that sweeps are tested on, and what they have to find."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MakeCheckpoint
from tests.sweep.commands import NAMES, by_hand
from tests.sweep.stores import Served, served

LIMIT = 12


@pytest.fixture(scope="package")
def models(make_checkpoint: MakeCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four."""
    folder = tmp_path_factory.mktemp("sweep") / "models"
    for at, name in enumerate(NAMES):
        shutil.copytree(make_checkpoint(name, seed=at), folder / name)
    return folder


@pytest.fixture(scope="package")
def expected(models: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The record files of all four under all conditions, measured one by one; ``LIMIT`` rows."""
    found = by_hand(models, tmp_path_factory.mktemp("by-hand"), LIMIT)
    assert len(found) == 4 * 4 * 3
    return found


@pytest.fixture(scope="package")
def server() -> Iterator[Served]:
    """An S3 server."""
    with served() as found:
        yield found


@pytest.fixture
def s3(server: Served, monkeypatch: pytest.MonkeyPatch) -> Served:
    """The same, and this process uses it."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return server
