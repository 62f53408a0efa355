"""A tiny model that knows the demo corpus by heart, made with the package's own commands."""

from __future__ import annotations

from pathlib import Path

from unlearnbench.demo.recipe import CORPUS, TARGET
from unlearnbench.demo.start import FORGET, RETAIN, make_start
from unlearnbench.training.job import Job, finetune
from unlearnbench.training.options import TrainOptions

__all__ = ["FORGET", "RETAIN", "make_start", "make_target"]


def make_target(folder: Path, seed: int, options: TrainOptions = TARGET) -> Path:
    """A target that was trained on all of the forget and retain texts."""
    start = make_start(folder / "start", seed)
    chosen = options.model_copy(update={"seed": seed})
    texts = (*FORGET, *RETAIN)
    finetune(Job(str(start), folder / "target", texts, options=chosen, corpus=CORPUS))
    return folder / "target"
