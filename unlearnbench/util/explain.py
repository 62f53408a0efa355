"""Lines that say which way a model is run, and why: what ``--explain`` prints."""

from __future__ import annotations

import logging

_LOG = logging.getLogger("unlearnbench.explain")
_LOG.setLevel(logging.WARNING)
_THREADS = {"from": "torch's own choice"}


def show_explanations(shown: bool) -> None:
    """Whether the lines are printed."""
    _LOG.setLevel(logging.INFO if shown else logging.WARNING)


def explain(line: str) -> None:
    """Say one thing that was chosen, with its reason."""
    _LOG.info("explain: %s", line)


def set_threads(threads: int | None) -> None:
    """Use so many processor threads; None leaves torch's own choice."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
        _THREADS["from"] = "asked for by --threads"


def explain_loaded(device: str, dtype: str, kernel: str | None) -> None:
    """Say what a precision runs on."""
    import torch

    explain(f"device {device}, compute dtype {dtype}")
    if kernel == "dequantized":
        explain("kernel dequantized: weights in force written back, dense products are faster here")
    elif kernel == "native":
        explain("kernel native: the library's own products on packed weights")
    if device == "cpu":
        explain(f"{torch.get_num_threads()} threads: {_THREADS['from']}")
