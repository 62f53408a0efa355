"""Lines that say which way a model is run, and why: what ``--explain`` prints."""

from __future__ import annotations

import logging

__all__ = ["explain", "show_explanations"]

_LOG = logging.getLogger("unlearnbench.explain")
_LOG.setLevel(logging.WARNING)


def show_explanations(shown: bool) -> None:
    """Whether the lines are printed."""
    _LOG.setLevel(logging.INFO if shown else logging.WARNING)


def explain(line: str) -> None:
    """Say one thing that was chosen, with its reason."""
    _LOG.info("explain: %s", line)
