"""A checkpoint's files: found, checked for damage and hashed before any of them is loaded."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from unlearnbench.checkpoints.folder import check_folder, list_folder
from unlearnbench.errors import CheckpointError, one_line
from unlearnbench.util import files
from unlearnbench.util.quiet import quiet_hub

Kind = Literal["safetensors", "pickle", "gguf", "adapter"]

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
# What a model folder needs; everything else in a hub repository stays there.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja"]
_HUB_IGNORED = ["consolidated*", "original/*", "onnx/*"]
# A folder of two checkpoints: what it is known by, and where they are. See ``models/pair.py``.
PAIR_FILE = "whp.json"
PARTS = ("baseline", "reinforced")
_MAX_JSON = 64 * 2**20
# safetensors itself takes 100 MB; a head of 100,000 tensors has some 12 MB.
_MAX_HEAD = 32 * 2**20

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint. ``folder`` holds them; ``weights`` are the weight files."""

    path: str
    folder: Path
    kind: Kind
    weights: tuple[Path, ...]
    revision: str | None = None

    @property
    def weights_sha256(self) -> str:
        """See ``files_sha256``."""
        return files_sha256(self.weights)

    @property
    def size(self) -> int:
        """Bytes of all weight files."""
        return sum(path.stat().st_size for path in self.weights)


def files_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of one file; of several, that of the lines ``sha256sum`` prints in name order."""
    digests = {path.name: files.file_sha256(path, CheckpointError) for path in paths}
    if len(digests) == 1:
        return next(iter(digests.values()))
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def find_checkpoint(
    model: str, revision: str | None, allow_pickle: bool, remote_code: bool = False
) -> CheckpointFiles:
    """Find the files that ``model`` names: a folder, a ``.gguf`` file or a hub id. Python files
    are fetched from the hub only with ``remote_code``.

    Raises:
        CheckpointError: nothing is there, files are missing or damaged, or only pickled weights
            are there and ``allow_pickle`` is off.
    """
    path = _local_path(model)
    if path.is_file():
        if path.suffix != ".gguf":
            raise CheckpointError(
                f"{model} is a file; --model takes a checkpoint folder, a hub id or a .gguf file"
            )
        _check_gguf(path)
        return CheckpointFiles(model, path.parent, "gguf", (path,))
    if path.is_dir():
        return _inspect_folder(model, path, None, allow_pickle)
    folder, commit = _download(model, revision, allow_pickle, remote_code)
    return _inspect_folder(model, folder, commit, allow_pickle)


def _local_path(model: str) -> Path:
    try:
        path = Path(model).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such home, a NUL
        raise CheckpointError(
            f"no such path: {one_line(model, 120)} ({one_line(error, 80)}); give a checkpoint "
            "folder"
        ) from None
    return path


def _download(
    model: str, revision: str | None, allow_pickle: bool, remote_code: bool
) -> tuple[Path, str]:
    if not _HUB_ID.match(model) or model.endswith(".gguf"):
        raise CheckpointError(f"no such path: {one_line(model)}; give a checkpoint folder")
    from huggingface_hub import snapshot_download

    quiet_hub()
    patterns = [*_HUB_PATTERNS, *["*.bin"] * allow_pickle, *["*.py"] * remote_code]
    try:
        folder = Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=_HUB_IGNORED,
            )
        )
    except Exception as error:  # the hub client's errors have no common base; all mean "not there"
        at = f"@{revision}" if revision else ""
        raise CheckpointError(
            f"no folder {model} here, and no {model}{at} from the hub; check the name, or give the "
            f"path of a checkpoint folder ({one_line(error, 150)})"
        ) from error
    return folder, folder.name


def _inspect_folder(
    model: str, folder: Path, commit: str | None, allow_pickle: bool
) -> CheckpointFiles:
    if not list_folder(folder):
        raise CheckpointError(f"{folder} is empty; --model takes a checkpoint folder")
    check_folder(folder)
    if (folder / "adapter_config.json").is_file():
        if _weight_files(folder, "model.safetensors") or _weight_files(folder, "pytorch_model.bin"):
            raise CheckpointError(
                f"{folder} holds a full checkpoint and an adapter (adapter_config.json), and "
                "transformers would load both without a word; move one to a folder of its own"
            )
        names, kind = ("adapter_model.safetensors", "adapter_model.bin"), "adapter"
    elif (folder / "config.json").is_file():
        names, kind = ("model.safetensors", "pytorch_model.bin"), "safetensors"
    else:
        raise CheckpointError(_no_config(folder))
    weights = _weight_files(folder, names[0])
    if weights:
        coded = kind == "safetensors" and is_quantized(folder)
        for path in weights:
            _check_safetensors(path, coded)
        found: Kind = "adapter" if kind == "adapter" else "safetensors"
        return CheckpointFiles(model, folder, found, weights, commit)
    pickled = _weight_files(folder, names[1])
    if pickled and not allow_pickle:
        raise CheckpointError(
            f"{folder} has only pickled weights ({pickled[0].name}), and a pickle can run code; "
            "convert it to safetensors, or pass --allow-pickle if you trust its author"
        )
    if not pickled:
        raise CheckpointError(
            f"{folder} has no weights: neither {names[0]} nor {names[0]}.index.json is there"
        )
    log.warning(
        "--allow-pickle: %s is loaded from %s, a pickle; only torch's restricted reader keeps its "
        "author's code from running",
        model,
        one_line(pickled[0].name, 80),
    )
    return CheckpointFiles(
        model, folder, "adapter" if kind == "adapter" else "pickle", pickled, commit
    )


def _no_config(folder: Path) -> str:
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return f"{folder} has no config.json; for the GGUF file give its path: --model {gguf[0]}"
    if (folder / PAIR_FILE).is_file():
        return (
            f"{folder} holds two checkpoints that answer together, and one is needed here; give "
            f"{folder / PARTS[0]} or {folder / PARTS[1]}"
        )
    return f"{folder} has no config.json; --model takes a folder written by save_pretrained"


def _weight_files(folder: Path, name: str) -> tuple[Path, ...]:
    """The single weight file, or every shard that the index names; empty where there is neither."""
    single, index = folder / name, folder / f"{name}.index.json"
    if single.is_file():
        return (single,)
    if not index.is_file():
        return ()
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; the checkpoint is damaged")
    shards = sorted({str(shard) for shard in weight_map.values()})
    for shard in shards:
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(f"{index} names {one_line(shard)!r}, outside the folder; refused")
        if not (folder / shard).is_file():
            raise CheckpointError(
                f"{folder} lacks the shard {one_line(shard)} that its index names"
            )
    return tuple(folder / shard for shard in shards)


def _check_safetensors(path: Path, coded: bool) -> None:
    """Open the file and its header: finds truncation and damage before anything is allocated."""
    from safetensors import SafetensorError, safe_open

    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if _MAX_HEAD < length < path.stat().st_size:
            raise CheckpointError(f"{path} has a head of {length:,} bytes; refused")
        with safe_open(path, framework="numpy") as file:
            dtypes = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({one_line(error, 150)}); copy or download it again"
        ) from None
    except MemoryError:  # as it is mapped
        raise CheckpointError(f"{path} is larger than the memory this process may use") from None
    if not dtypes:
        raise CheckpointError(f"{path} holds no tensors")
    for name, dtype in dtypes.items():
        # Codes without their scales would be taken for values.
        floating = dtype in ("F64", "F32", "F16", "BF16")
        if name.endswith(".weight") and not floating and not coded:
            raise CheckpointError(
                f"{path}: {one_line(name, 120)} is stored as {dtype}, as quantized weights are, "
                "and config.json has no quantization_config; give the unquantized checkpoint"
            )


def is_quantized(folder: Path) -> bool:
    """Whether a checkpoint's config states that its weights are quantized."""
    config = read_json(folder / "config.json")
    return any(config.get(key) for key in ("quantization_config", "compression_config"))


def _check_gguf(path: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(f"{path} is no GGUF file; its first bytes are not 'GGUF'")


def read_json(path: Path) -> dict[str, object]:
    """Read a JSON object from a checkpoint.

    Raises:
        CheckpointError: unreadable, absurdly large, no JSON, or no object.
    """
    value = files.read_json(path, CheckpointError, _MAX_JSON)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return value
