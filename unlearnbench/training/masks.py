"""A method's map of what may change, chosen once."""

from __future__ import annotations

from pathlib import Path

from accelerate import PartialState
from safetensors.torch import load_file, save_file

from unlearnbench.methods import Piece
from unlearnbench.methods.base import Masks, TrainingContext
from unlearnbench.training.trainer import device
from unlearnbench.util.process import is_main, process_count


def choose_masks(context: TrainingContext, chooser: Piece, home: Path) -> Masks:
    """The method's map. Made once: a resumed training and the other processes read it, since
    gradients of GPUs differ from run to run. home: where it is kept.
    """
    path = home / "mask.safetensors"
    if is_main() and not path.exists():
        made: Masks = chooser.module.choose(context, chooser.options)
        save_file({n: m.cpu().contiguous() for n, m in made.items()}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    if process_count() > 1:
        PartialState(cpu=device() == "cpu").wait_for_everyone()
    return load_file(path, device=device())
