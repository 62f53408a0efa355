"""Checkpoints of a training in progress: which is whole, and what to say when none is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from unlearnbench.errors import TrainingError, UnlearnbenchError, one_line
from unlearnbench.util.process import is_main


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; a Trainer writes ``trainer_state.json`` last. Those that an
    interruption left incomplete are removed.
    """
    steps = {path: _step(path) for path in folder.glob("checkpoint-*")}
    for path in [path for path, step in steps.items() if step is None]:
        del steps[path]
        if is_main():
            shutil.rmtree(path, ignore_errors=True)
    return max(steps, key=lambda path: steps[path] or 0, default=None)


def _step(checkpoint: Path) -> int | None:
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_bytes())
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


# safetensors says "os error", torch's zip writer names its own source file.
_WRITING = ("os error", "I/O error", "iostream error", "inline_container", "write")


def run_trainer(trainer: Any, last: Path | None, folder: Path) -> None:
    """Train; what cannot be saved becomes one clear error.

    Raises:
        TrainingError: a checkpoint could not be written.
    """
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except UnlearnbenchError:
        raise
    except OSError as error:
        raise _cannot_save(error, folder) from error
    except Exception as error:
        # safetensors and torch wrap a full disk in errors of their own.
        if any(word in str(error) for word in _WRITING):
            raise _cannot_save(error, folder) from error
        raise


def _cannot_save(error: Exception, folder: Path) -> TrainingError:
    left = last_checkpoint(folder)
    kept = f"{left} is complete" if left else "no checkpoint is complete"
    return TrainingError(
        f"a checkpoint cannot be written below {folder} ({one_line(error, 150)}); {kept}; free "
        "some space and add --resume"
    )
