"""``unlearning.json`` and other files of a training, written. What stands in it, and its reader:
``checkpoints.origin``. Written last, so its presence says that the training is complete.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel

from unlearnbench.errors import TrainingError
from unlearnbench.util.files import write_whole, writing


def write_json(path: Path, value: BaseModel) -> None:
    """Write a file whole or not at all.

    Raises:
        TrainingError: it cannot be written.
    """
    text = json.dumps(value.model_dump(mode="json", exclude_none=True), indent=1, allow_nan=False)
    write_text(path, text + "\n")


def write_text(path: Path, text: str) -> None:
    """As ``write_json``, for text."""
    with writing(path, TrainingError, "free some space and try again"):
        write_whole(path, text.encode("utf-8", errors="backslashreplace"))
