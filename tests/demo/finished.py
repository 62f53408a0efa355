"""A demo that is there already, for tests that take one long."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from unlearnbench.demo.pipeline import run_demo
from unlearnbench.demo.recipe import DemoOptions


def finished_demo(seed: int, methods: Sequence[str], folder: Path) -> DemoOptions:
    """``$UNLEARNBENCH_DEMOS/seedN``; where that is not set, one that is made in ``folder``."""
    given = os.environ.get("UNLEARNBENCH_DEMOS")
    demo = DemoOptions(Path(given or folder) / f"seed{seed}", seed, tuple(methods))
    if not given:
        run_demo(demo, print)
    return demo
