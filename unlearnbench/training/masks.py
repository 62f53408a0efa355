"""A method's map of what may change, chosen once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unlearnbench.checkpoints.origin import LossRecord
from unlearnbench.methods import Piece
from unlearnbench.methods.base import Masks
from unlearnbench.training.trainer import device
from unlearnbench.util.process import is_main, process_count

if TYPE_CHECKING:
    from unlearnbench.training.context import TrainerContext

_LOSSES = TypeAdapter(list[LossRecord])


def choose_masks(context: TrainerContext, chooser: Piece, home: Path) -> Masks:
    """The method's map. Made once: a resumed training and the other processes read it, since
    gradients of GPUs differ from run to run. Beside it stand the losses of the trainings that it
    took, which the record of a resumed training has too. home: where it is kept.
    """
    path = home / "mask.safetensors"
    is_there = path.exists()
    if is_main() and not is_there:
        made: Masks = chooser.module.choose(context, chooser.options)
        kept, losses = {n: m.cpu().contiguous() for n, m in made.items()}, context.losses
        said = {"losses": _LOSSES.dump_json(losses).decode()}
        save_file(kept, path.with_suffix(".new"), said)
        path.with_suffix(".new").replace(path)
    if process_count() > 1:
        PartialState(cpu=device() == "cpu").wait_for_everyone()
    if is_there:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}  # none where an earlier version made it
            context.losses += _LOSSES.validate_json(said.get("losses", "[]"))
    return load_file(path, device=device())
