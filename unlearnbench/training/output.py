"""The output folder: where a training stands, and its result as an ordinary checkpoint."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.origin import FILE, MaskRecord
from unlearnbench.checkpoints.source import EnsembleFacts, write_ensemble
from unlearnbench.errors import OptionError, TrainingError, one_line
from unlearnbench.methods import Method
from unlearnbench.methods.base import Ensemble, Masks
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.util.files import share, write_whole, writing
from unlearnbench.util.process import is_main

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class OutputFolder:
    """``path`` gets the checkpoint at the end; until then everything is in ``path/.training``."""

    path: Path

    @property
    def work(self) -> Path:
        """Checkpoints of the training, removed when it is complete."""
        return self.path / ".training"

    @property
    def _claim(self) -> Path:
        return self.work / "request.json"

    @property
    def is_claimed(self) -> bool:
        """Whether an unfinished training is here that can be gone on with."""
        return self._claim.exists()

    def require_free(self, request: Fingerprint, resume: bool) -> None:
        """Check that the training which ``request`` describes may use the folder.

        Raises:
            OptionError: it holds a finished training, another one, or something else; or there is
                an unfinished one and ``resume`` is off.
        """
        if not is_main():  # it would meet the main process's own claim
            return
        if (self.path / FILE).exists():
            raise OptionError(f"{self.path} holds a finished training; use another --out")
        if self._claim.exists():
            self._require_same(request, resume)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise OptionError(
                f"{self.path} is in the way and no unfinished training; use another --out"
            )

    def claim(self, request: Fingerprint) -> None:
        """Take the folder, so that an interrupted training is known again.

        Raises:
            TrainingError: it cannot be written to.
        """
        if not is_main():
            return
        try:
            self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be made ({error.strerror})") from None
        write_text(self._claim, json.dumps(dict(request.facts), sort_keys=True, indent=1))

    def _require_same(self, request: Fingerprint, resume: bool) -> None:
        try:
            earlier = json.loads(self._claim.read_bytes())
            there = Fingerprint.of(earlier if isinstance(earlier, dict) else {})
        except (OSError, ValueError) as error:
            raise OptionError(
                f"{self._claim} is damaged ({one_line(error, 80)}); remove {self.path}"
            ) from None
        if not resume:
            raise OptionError(
                f"{self.path} holds an unfinished training; add --resume to go on, or remove it"
            )
        if there != request:
            raise OptionError(
                f"{self.path} holds a training with other options: "
                f"{'; '.join(differences(there, request))}; use the same options or another --out"
            )

    def save(
        self,
        result: PreTrainedModel | Ensemble,
        tokenizer: PreTrainedTokenizerBase,
        method: Method,
        masks: Masks | None,
    ) -> None:
        """Write the checkpoint, whole or not at all: beside, then moved into place.

        Raises:
            TrainingError: it cannot be written; what was trained is still in ``work``.
        """
        final = self.work / "final"
        try:
            shutil.rmtree(final, ignore_errors=True)
            final.mkdir(parents=True)
            if isinstance(result, Ensemble):
                _write_ensemble(final, result, tokenizer, method)
            else:
                result.save_pretrained(final)
                tokenizer.save_pretrained(final)
            if masks is not None:
                _write_masks(final, method, masks)
            self.take(final)
        except TrainingError:
            raise
        except Exception as error:  # safetensors has an error of its own for a full disk
            raise TrainingError(
                f"the checkpoint cannot be written to {self.path} ({one_line(error, 150)}); free "
                f"some space and add --resume, what was trained is in {self.work}"
            ) from error

    def take(self, folder: Path) -> None:
        """Move the files of a finished checkpoint into the output folder."""
        for part in sorted(folder.rglob("*")):
            if part.is_file():
                share(part)  # safetensors makes its files private
        for part in sorted(folder.iterdir()):
            place = self.path / part.name
            if place.is_dir():  # left by an earlier try that ended here
                shutil.rmtree(place)
            part.replace(place)

    def clean(self) -> None:
        """Remove the training's checkpoints."""
        shutil.rmtree(self.work, ignore_errors=True)


def _write_ensemble(
    folder: Path, result: Ensemble, tokenizer: PreTrainedTokenizerBase, method: Method
) -> None:
    """Each model in a folder of its own, and a file that says how they answer together. No
    config.json at the top: what does not know of joined models must not take one for the whole.
    """
    for name, model in result.models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    facts = EnsembleFacts(
        method=method.pieces[0].about.name,
        models=tuple(result.models),
        numbers=dict(result.numbers),
    )
    write_ensemble(folder, facts)


def _write_masks(folder: Path, method: Method, masks: Masks) -> None:
    from safetensors.torch import save_file

    piece = method.piece("masks")
    assert piece is not None  # noqa: S101 - where there are masks, it made them
    tensors = {name: mask.cpu().contiguous() for name, mask in masks.items()}
    save_file(tensors, folder / f"{piece.about.name}_mask.safetensors")


def mask_record(masks: Masks, model: Any) -> MaskRecord:
    """Count what a mask chose of the weights of ``model``."""
    sizes = {name: model.state_dict()[name].numel() // len(mask) for name, mask in masks.items()}
    chosen = {name: int(mask.sum()) for name, mask in masks.items()}
    return MaskRecord(
        rows=sum(len(mask) for mask in masks.values()),
        chosen_rows=sum(chosen.values()),
        weights=sum(len(mask) * sizes[name] for name, mask in masks.items()),
        chosen_weights=sum(n * sizes[name] for name, n in chosen.items()),
    )


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
