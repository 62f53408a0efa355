"""Keep other libraries' notes and bars off the screen, where an error is to be one line."""

from __future__ import annotations

import logging
from typing import Any

__all__ = ["quiet_hub", "quiet_transformers"]


def quiet_hub() -> None:
    """Five lines of retries for every file of an unreachable hub, otherwise."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils
    utils.logging.set_verbosity_error()
    utils.disable_progress_bars()


def quiet_transformers() -> None:
    """Advice for people who train, and a bar for each shard, otherwise."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    # One line for every int8 matrix product, that inputs are cast to float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
