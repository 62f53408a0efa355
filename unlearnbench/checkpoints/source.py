"""What ``--model`` names, opened: one checkpoint, or the two of Who's Harry Potter, whose logits
are combined.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.find import PAIR_FILE, PARTS, CheckpointFiles, check_folder, read_json
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
    def alpha(self) -> float | None:
        """Of two that answer together: the strength of their logit difference."""

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

    Raises: as ``open_checkpoint`` and ``PairSource``.
    """
    try:
        is_pair = (Path(model).expanduser() / PAIR_FILE).is_file()
    except (OSError, RuntimeError, ValueError):  # no path at all, which opening it will say
        is_pair = False
    return (PairSource if is_pair else open_checkpoint)(model, options, keep)


class PairSource:
    """A ``Source`` of two checkpoints of one shape and one tokenizer, in the folders ``baseline``
    and ``reinforced`` beside ``whp.json``.

    Raises:
        CheckpointError: the folder is damaged, or the two do not fit together.
        OptionError: an option for another kind of checkpoint.
    """

    def __init__(self, model: str, options: LoadOptions, keep: bool = True) -> None:
        if options.base is not None or options.revision is not None:
            raise OptionError(
                f"{model} holds two local checkpoints; leave --base and --revision out"
            )
        folder = Path(model).expanduser()
        check_folder(folder)
        self.options = options
        self.alpha = _read_alpha(folder / PAIR_FILE)
        self.parts = tuple(open_checkpoint(str(folder / part), options, keep) for part in PARTS)
        for what in ("tokenizer", "config"):
            if len({getattr(part.checkpoint, f"{what}_sha256") for part in self.parts}) > 1:
                raise CheckpointError(
                    f"{model}: its two checkpoints differ in {what}; their logits cannot be "
                    "combined"
                )
        first = self.parts[0]
        facts = [*(part.checkpoint.weights_sha256 for part in self.parts), self.alpha]
        self.checkpoint = first.checkpoint.model_copy(
            update={
                "path": model,
                "weights_sha256": content_sha256(facts),
                "origin": first.checkpoint.origin | read_origin(folder),
            }
        )
        # One config for both, so what it says of packed weights holds for both.
        self.config, self.tokenizer = first.config, first.tokenizer
        self.files, self.stored = first.files, first.stored

    @property
    def own_dtype(self) -> str:
        """The baseline's."""
        return self.parts[0].own_dtype

    def release(self) -> None:
        """Drop both models' weights unless they are kept."""
        for part in self.parts:
            part.release()


def _read_alpha(path: Path) -> float:
    content = read_json(path)
    alpha = content.get("alpha")
    if content.get("format_version") != 1 or set(content) != {"format_version", "alpha"}:
        raise CheckpointError(f"{path} is of an unknown format")
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise CheckpointError(f"{path}: alpha is no finite number")
    if alpha < 0:
        raise CheckpointError(f"{path}: alpha {alpha:g} is negative")
    return float(alpha)


def write_pair(folder: Path, alpha: float) -> None:
    """Mark a folder that holds both parts as a pair."""
    content = json.dumps({"format_version": 1, "alpha": alpha})
    (folder / PAIR_FILE).write_text(content + "\n", encoding="utf-8")
