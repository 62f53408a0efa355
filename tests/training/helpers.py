"""Quick trainings of a tiny model, and what they left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from unlearnbench.checkpoints.origin import Training
from unlearnbench.methods import find_method
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.options import TrainOptions

State = dict[str, torch.Tensor]
QUICK = TrainOptions(lr=1e-3, max_steps=3, batch_size=4, max_length=48, save_steps=0)


def go(job: Job, out: Path, method: str, **options: Any) -> Training:
    """Unlearn with some options changed; the retain set and other answers only where the method has
    use for them.
    """
    knobs = options.pop("knobs", {})
    found = find_method(method)
    retain = job.retain if "retain" in found.data else ()
    if found.takes_alternatives == "yes" and job.alternative is None:
        job = replace(job, alternative="refuse")
    if "unseen" in found.data and not job.unseen:
        job = replace(job, unseen=job.retain)
    if any(piece.about.needs_base for piece in found.pieces) and job.base is None:
        job = replace(job, base=job.model)
    chosen = job.options.model_copy(update=options)
    return unlearn(replace(job, out=out, retain=retain, options=chosen), method, knobs)


def weights(folder: Path) -> State:
    return load_file(folder / "model.safetensors")


def same(first: State, second: State) -> bool:
    return set(first) == set(second) and all(torch.equal(first[n], second[n]) for n in first)
