"""``--explain``: lines that say which way a model is run, and why."""

from __future__ import annotations

import logging

from unlearnbench.util.process import describe_threads

_LOG = logging.getLogger("unlearnbench.explain")
_LOG.setLevel(logging.WARNING)


def show_explanations(shown: bool) -> None:
    """Print the lines, or do not."""
    _LOG.setLevel(logging.INFO if shown else logging.WARNING)


def explain(line: str) -> None:
    """Say one thing that was chosen, with its reason."""
    _LOG.info("explain: %s", line)


def explain_loaded(device: str, dtype: str, kernel: str | None) -> None:
    """Say what a loaded model runs on."""
    explain(f"device {device}, compute dtype {dtype}")
    if kernel == "dequantized":
        explain("kernel dequantized: weights in force written back, dense products are faster here")
    elif kernel == "native":
        explain("kernel native: the library's own products on packed weights")
    if device == "cpu":
        explain(describe_threads())
