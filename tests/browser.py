"""Headless Chromium for the tests of pages. They skip, and say so, where no browser is."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


def chromium() -> str:
    """The system's browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        found = shutil.which(name)
        if found:
            return found
    pytest.skip("no chromium on this machine (apt-get install chromium)")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    with launched() as found:
        yield found


@contextmanager
def launched() -> Iterator[Any]:
    """The browser, which ends with the block."""
    path = chromium()
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as play:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        found = play.chromium.launch(executable_path=path, args=sandbox)
        yield found
        found.close()


def overlaps(boxes: list[list[float]]) -> int:
    """How many pairs of boxes, each left, top, right, bottom, have something in common."""
    pairs = itertools.combinations(boxes, 2)
    return sum(a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3] for a, b in pairs)
