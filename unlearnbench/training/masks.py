"""A method's map of what may change, chosen once."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unlearnbench.checkpoints.origin import LossRecord
from unlearnbench.methods import Piece
from unlearnbench.methods.base import Masks, TrainingContext
from unlearnbench.training.trainer import device
from unlearnbench.util.process import is_main, process_count

_LOSSES = TypeAdapter(list[LossRecord])


def choose_masks(
    context: TrainingContext, chooser: Piece, home: Path, losses: list[LossRecord]
) -> Masks:
    """The method's map. Made once: a resumed training and the other processes read it, since
    gradients of GPUs differ from run to run. home: where it is kept, with the ``losses`` of the
    trainings that it took, which are put back where it is read again.
    """
    path = home / "mask.safetensors"
    is_there = path.exists()
    if is_main() and not is_there:
        made: Masks = chooser.module.choose(context, chooser.options)
        kept = {n: m.cpu().contiguous() for n, m in made.items()}
        said = {"losses": _LOSSES.dump_json(losses).decode()}
        save_file(kept, path.with_suffix(".new"), said)
        path.with_suffix(".new").replace(path)
    if process_count() > 1:
        PartialState(cpu=device() == "cpu").wait_for_everyone()
    if is_there:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}  # none where an earlier version made it
            losses += _LOSSES.validate_json(said.get("losses", "[]"))
    return load_file(path, device=device())
