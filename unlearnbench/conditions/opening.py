"""From what ``--model`` names to a source: one checkpoint, or WHP's two; with how it came about."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.pair import PairSource, is_pair, load_pair
from unlearnbench.checkpoints.source import Source, open_source

if TYPE_CHECKING:
    from unlearnbench.conditions.base import How, PrecisionSpec
    from unlearnbench.models.hf import HFModel


def open_any(model: str, options: LoadOptions, keep: bool = True) -> Source | PairSource:
    """Open what ``model`` names. What its ``unlearning.json`` says goes into ``origin``.

    Raises: as ``open_source`` and ``PairSource``.
        CheckpointError: also, where ``unlearning.json`` is damaged.
    """
    from unlearnbench.training.record import origin_of, read_training

    is_two = is_pair(model)
    source = PairSource(model, options, keep) if is_two else open_source(model, options, keep)
    folder = Path(model).expanduser() if isinstance(source, PairSource) else source.files.folder
    training = read_training(folder)
    if training is not None:
        origin = {**source.checkpoint.origin, **origin_of(training)}
        source.checkpoint = source.checkpoint.model_copy(update={"origin": origin})
    return source


def load_any(
    source: Source | PairSource, spec: PrecisionSpec, how: How, batch_size: int | None = None
) -> HFModel:
    """Load either kind at ``spec``. Raises: as ``loading.load_model``."""
    from unlearnbench.conditions.load import load_model

    if isinstance(source, PairSource):
        return load_pair(source, spec, how, batch_size)
    return load_model(source, spec, how, batch_size)
