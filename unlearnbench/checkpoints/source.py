"""What ``--model`` names, opened: one checkpoint, or several whose logits are combined."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.ensemble import EnsembleFacts, find_ensemble, read_ensemble
from unlearnbench.checkpoints.find import CheckpointFiles, check_folder
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import read_origin
from unlearnbench.checkpoints.packed import StoredScheme
from unlearnbench.errors import CheckpointError, OptionError
from unlearnbench.results import Checkpoint
from unlearnbench.util.files import content_sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Source(Protocol):
    """An open checkpoint, or several that answer as one model."""

    options: LoadOptions
    """How it was found, and what was trusted."""
    files: CheckpointFiles
    """Its files; of several checkpoints, those of the first."""
    checkpoint: Checkpoint
    """What results record of it."""
    config: Any
    """The config, as transformers holds it."""
    tokenizer: PreTrainedTokenizerBase
    """The tokenizer; not to be changed."""
    stored: StoredScheme | None
    """How its weights are quantized already; None where they are not."""

    @property
    def parts(self) -> tuple[CheckpointSource, ...]:
        """The checkpoint itself, or those that answer together."""

    @property
    def ensemble(self) -> EnsembleFacts | None:
        """Of several that answer together: how."""

    @property
    def own_dtype(self) -> str:
        """The short name of the dtype that most of the weights are stored in.

        Raises:
            CheckpointError: none that can be computed in.
        """

    def release(self) -> None:
        """Drop the weights from memory, unless they are kept for the next condition."""


def open_source(model: str, options: LoadOptions, keep: bool = True) -> Source:
    """Check the files of what ``model`` names and open it. ``keep``: hold its unquantized weights
    in memory between conditions.

    Raises: as ``open_checkpoint`` and ``EnsembleSource``.
    """
    path = find_ensemble(model)
    if path is None:
        return open_checkpoint(model, options, keep)
    return EnsembleSource(model, path, options, keep)


class EnsembleSource:
    """A ``Source`` of several checkpoints of one shape and one tokenizer, each in a folder of its
    own beside ``path``, the file that says how they answer together.

    Raises:
        CheckpointError: the folder is damaged, or the checkpoints do not fit together.
        OptionError: an option for another kind of checkpoint.
    """

    def __init__(self, model: str, path: Path, options: LoadOptions, keep: bool) -> None:
        if options.base is not None or options.revision is not None:
            raise OptionError(
                f"{model} holds several local checkpoints; leave --base and --revision out"
            )
        folder = path.parent
        check_folder(folder)
        self.options = options
        self.ensemble = read_ensemble(path)
        self.parts = tuple(
            open_checkpoint(str(folder / part), options, keep) for part in self.ensemble.models
        )
        for what in ("tokenizer", "config"):
            if len({getattr(part.checkpoint, f"{what}_sha256") for part in self.parts}) > 1:
                raise CheckpointError(
                    f"{model}: its checkpoints differ in {what}; their logits cannot be combined"
                )
        first = self.parts[0]
        facts: list[object] = [part.checkpoint.weights_sha256 for part in self.parts]
        if self.ensemble.method == "whp":  # as results of earlier releases have it
            facts.append(self.ensemble.numbers["alpha"])
        else:
            facts += [self.ensemble.method, dict(self.ensemble.numbers)]
        self.checkpoint = first.checkpoint.model_copy(
            update={
                "path": model,
                "weights_sha256": content_sha256(facts),
                "origin": first.checkpoint.origin | read_origin(folder),
            }
        )
        # One config for all, so what it says of packed weights holds for all.
        self.config, self.tokenizer = first.config, first.tokenizer
        self.files, self.stored = first.files, first.stored

    @property
    def own_dtype(self) -> str:
        """The first's."""
        return self.parts[0].own_dtype

    def release(self) -> None:
        """Drop all models' weights unless they are kept."""
        for part in self.parts:
            part.release()
