"""The output folder: where a training stands, and its result as an ordinary checkpoint."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.checkpoints.find import CheckpointFiles, tokenizer_files
from unlearnbench.checkpoints.origin import FILE, MaskRecord, Training
from unlearnbench.checkpoints.source import EnsembleFacts, write_ensemble
from unlearnbench.checkpoints.tokenizer import load_tokenizer, probe_ids
from unlearnbench.errors import (
    CheckpointError,
    OptionError,
    TrainingError,
    UnlearnbenchError,
    one_line,
)
from unlearnbench.methods import Method
from unlearnbench.methods.base import Ensemble, Masks
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.util.files import link, share, write_whole, writing
from unlearnbench.util.process import is_main

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

# Of a full disk safetensors says "os error", torch's zip writer names its own source file.
_WRITING = ("os error", "I/O error", "iostream error", "inline_container", "write")


KEPT = "kept"
"""Where states on the way wait for the end."""


@dataclass(frozen=True)
class OutputFolder:
    """``path`` gets the checkpoint at the end; until then everything is in ``path/.training``."""

    path: Path

    @property
    def work(self) -> Path:
        """Checkpoints of the training, removed when it is complete."""
        return self.path / ".training"

    @property
    def claimed(self) -> Path:
        """What was asked for; it exists where an unfinished training can be gone on with."""
        return self.work / "request.json"

    def require_free(self, request: Fingerprint, resume: bool) -> None:
        """Check that the training which ``request`` describes may use the folder. Raises
        OptionError where something else is there, or an unfinished one and ``resume`` is off.
        """
        if not is_main():  # it would meet the main process's own claim
            return
        if (self.path / FILE).exists():
            raise OptionError(f"{self.path} holds a finished training; use another --out")
        if not self.claimed.exists():
            if self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
                raise OptionError(
                    f"{self.path} is in the way and no unfinished training; use another --out"
                )
            return
        try:
            earlier = json.loads(self.claimed.read_bytes())
            there = Fingerprint.of(earlier if isinstance(earlier, dict) else {})
        except (OSError, ValueError) as error:
            raise OptionError(
                f"{self.claimed} is damaged ({one_line(error, 80)}); remove {self.path}"
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

    @contextlib.contextmanager
    def claim(self, request: Fingerprint) -> Iterator[None]:
        """Take the folder, so that an interrupted training is known again. It is given back where
        an error leaves nothing to go on with.
        """
        try:
            if is_main():
                self.work.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.path} cannot be made ({error.strerror})") from None
        try:
            if is_main():
                facts = json.dumps(dict(request.facts), sort_keys=True, indent=1)
                write_file(self.claimed, facts.encode())
            yield
        except UnlearnbenchError:
            if is_main() and not any(map(_is_progress, self.work.rglob("*"))):
                self.clean()
                with contextlib.suppress(OSError):
                    self.path.rmdir()
            raise

    def save(
        self,
        result: PreTrainedModel | Ensemble,
        save_tokenizer: Callable[[Path], None],
        method: Method,
        masks: Masks | None,
    ) -> None:
        """Write the checkpoint, whole or not at all: beside, then moved into place. Of an ensemble
        each model is in a folder of its own, and a file says how they answer together; there is no
        config.json at the top, by which other tools would take one model for the whole. Raises
        TrainingError where it cannot be written; what was trained is still in ``work``.
        """
        from safetensors.torch import save_file

        final = self.work / "final"
        models = result.models if isinstance(result, Ensemble) else {"": result}
        try:
            shutil.rmtree(final, ignore_errors=True)
            final.mkdir(parents=True)
            for name, model in models.items():
                model.save_pretrained(final / name)
                save_tokenizer(final / name)
            for state in sorted((self.work / KEPT).glob("*")):
                if state.is_file():
                    link(state, final / state.name)
                else:
                    shutil.copytree(state, final / state.name, copy_function=link)
            if isinstance(result, Ensemble):
                name, numbers = method.pieces[0].about.name, dict(result.numbers)
                names = (*models, *result.kept)
                facts = EnsembleFacts(method=name, models=names, numbers=numbers)
                write_ensemble(final, _with_states(facts, final, self.work / KEPT))
            chooser = method.piece("masks")
            if chooser is not None and masks is not None:
                tensors = {name: mask.cpu().contiguous() for name, mask in masks.items()}
                # Not beside the weights: some tools take every *.safetensors there for weights.
                (final / "masks").mkdir()
                save_file(tensors, final / f"masks/{chooser.about.name}_mask.safetensors")
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
            if part.is_file() and part.stat().st_nlink == 1:  # else it is another folder's too
                share(part)  # safetensors makes its files private
        for part in sorted(folder.iterdir()):
            place = self.path / part.name
            if place.is_dir():  # left by an earlier try that ended here
                shutil.rmtree(place)
            part.replace(place)

    def clean(self) -> None:
        """Remove the training's checkpoints."""
        shutil.rmtree(self.work, ignore_errors=True)


def _with_states(facts: EnsembleFacts, final: Path, kept: Path) -> EnsembleFacts:
    """The facts with the hash of each model and state that the training kept on the way."""
    from unlearnbench.checkpoints.shard_plan import state_sha256

    names = sorted(path.name for path in kept.glob("*") if path.is_dir())
    states = {name: state_sha256(final / name) for name in names}
    return facts.model_copy(update={"states": states})


def is_trained(out: Path) -> bool:
    """Whether a training is complete; one that was never claimed is removed."""
    folder = OutputFolder(out)
    if (out / FILE).exists():
        folder.clean()  # in case the process was killed just before
        return True
    if folder.work.is_dir() and not folder.claimed.exists():
        shutil.rmtree(out)
    return False


def save_state(folder: Path, model: Any, save_tokenizer: Callable[[Path], None]) -> None:
    """A state on the way as a checkpoint. Raises TrainingError where it cannot be written."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        save_tokenizer(folder)
        for path in folder.glob("*.safetensors"):
            share(path)
    except Exception as error:  # safetensors has an error of its own for a full disk
        raise TrainingError(
            f"{folder} cannot be written ({one_line(error, 150)}); free some space and add --resume"
        ) from error


def save_tokenizer(tokenizer: Any, home: CheckpointFiles, folder: Path) -> None:
    """Put the tokenizer of ``home`` into ``folder``: its files as they are, since transformers may
    write others; of a GGUF file, which has none, what transformers writes, and so of a tokenizer
    from elsewhere that would do otherwise beside the model's config.json, which stands there.
    """
    copied = home.kind != "gguf"
    if copied:
        code = home.folder.glob("*.py") if home.trusted else ()
        for path in (*tokenizer_files(home.folder), *code):
            place = folder / path.relative_to(home.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        if not home.weights:
            copied = _does_the_same(tokenizer, replace(home, folder=folder))
    if not copied:
        tokenizer.save_pretrained(folder)


def _does_the_same(tokenizer: Any, other: CheckpointFiles) -> bool:
    with contextlib.suppress(CheckpointError):
        return probe_ids(load_tokenizer(other)) == probe_ids(tokenizer)
    return False


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


def _is_progress(path: Path) -> bool:
    """Whether an unfinished training can go on with this; a mask is soon chosen again."""
    saved = path.suffix == ".safetensors" and path.name != "mask.safetensors"
    return saved or path.name.startswith("checkpoint-")


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all. Raises TrainingError where it cannot be written."""
    with writing(path, TrainingError, "free some space and try again"):
        write_whole(path, content)


def write_record(folder: Path, training: Training) -> None:
    """Write ``unlearning.json``. Raises TrainingError where it cannot be written."""
    record = training.model_dump(mode="json", exclude_none=True)
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    write_file(folder / FILE, text.encode())


def last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; a Trainer writes ``trainer_state.json`` last. Those that an
    interruption left incomplete are removed.
    """
    steps = {}
    for path in folder.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads((path / "trainer_state.json").read_bytes())
            steps[path] = int(state["global_step"])
        if path not in steps and is_main():
            shutil.rmtree(path, ignore_errors=True)
    return max(steps, key=lambda path: steps[path], default=None)


def run_trainer(trainer: Any, last: Path | None, folder: Path) -> None:
    """Train, from the checkpoint ``last``; one that cannot be written is a TrainingError."""
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except UnlearnbenchError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not any(word in str(error) for word in _WRITING):
            raise
        left = last_checkpoint(folder)
        kept = f"{left} is complete" if left else "no checkpoint is complete"
        raise TrainingError(
            f"a checkpoint cannot be written below {folder} ({one_line(error, 150)}); {kept}; free "
            "some space and add --resume"
        ) from error
