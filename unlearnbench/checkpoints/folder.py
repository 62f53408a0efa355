"""A checkpoint folder's own files: regular ones, inside the folder, of a size that can be meant."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from unlearnbench.errors import CheckpointError, one_line

# Largest sizes of the files that are read whole. In use are a tokenizer.json of 34 MB (Gemma 3),
# indexes of some MB, and configs of some hundred KB, with a name for each of many modules.
_LARGE, _SMALL = 64 * 2**20, 8 * 2**20
_LIMITS = {
    "config.json": _SMALL,
    "generation_config.json": _SMALL,
    "adapter_config.json": _SMALL,
    "tokenizer_config.json": _SMALL,
    "special_tokens_map.json": _SMALL,
    "added_tokens.json": _SMALL,
    "chat_template.json": _SMALL,
    "chat_template.jinja": _SMALL,
    "whp.json": _SMALL,
    "tokenizer.json": _LARGE,
    "tokenizer.model": _LARGE,
    "spiece.model": _LARGE,
    "vocab.json": _LARGE,
    "vocab.txt": _LARGE,
    "merges.txt": _LARGE,
    "unlearning.json": _LARGE,
    "model.safetensors.index.json": _LARGE,
    "pytorch_model.bin.index.json": _LARGE,
    "adapter_model.safetensors.index.json": _LARGE,
    "adapter_model.bin.index.json": _LARGE,
}
# Named by the libraries as where further templates are; the only folder below that they read.
_TEMPLATES = "additional_chat_templates"


def list_folder(folder: Path) -> list[Path]:
    """Everything in ``folder``, in name order.

    Raises:
        CheckpointError: it cannot be listed.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read ({error.strerror})") from None


def check_folder(folder: Path) -> None:
    """Refuse what a library would open without a look at what it is.

    A pipe or a device would block or never end; a link that leaves the folder would show what the
    reader may see and the checkpoint's author may not. A snapshot of the hub's cache links to the
    blobs beside it, and may.

    Raises:
        CheckpointError: names the file.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    for path in _files(folder):
        if path.exists():  # a link to nothing is as a missing file, to the libraries too
            _check_place(path, home, blobs)
            _check_file(path)


def _files(folder: Path) -> Iterator[Path]:
    for path in list_folder(folder):
        if path.name == _TEMPLATES and path.is_dir():
            yield path
            yield from list_folder(path)
        elif path.is_symlink() or not path.is_dir():
            yield path


def _check_place(path: Path, home: Path, blobs: Path | None) -> None:
    target = path.resolve()
    if target.is_relative_to(home) or (blobs is not None and target.parent == blobs):
        return
    raise CheckpointError(
        f"{path} is a link that leaves the checkpoint's folder, to {one_line(target, 200)}; "
        "refused: put the file itself there"
    )


def _check_file(path: Path) -> None:
    try:
        facts = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None
    if stat.S_ISDIR(facts.st_mode):
        return
    if not stat.S_ISREG(facts.st_mode):
        raise CheckpointError(f"{path} is no regular file but a pipe or a device; remove it")
    limit = _LIMITS.get(path.name)
    if limit is not None and facts.st_size > limit:
        raise CheckpointError(f"{path} is larger than {limit >> 20} MiB; refused")
