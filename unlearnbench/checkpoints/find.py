"""A checkpoint's files: found, and looked at before any of them is loaded."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from unlearnbench.checkpoints.gguf import damaged, read_gguf_head
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import CheckpointError, one_line
from unlearnbench.util import files
from unlearnbench.util.process import quiet_hub

Kind = Literal["safetensors", "pickle", "gguf", "adapter"]

PAIR_FILE, ENSEMBLE_FILE = "whp.json", "ensemble.json"
"""What a folder of several checkpoints is known by; see ``source.py``."""
SCHEMES = ("quantization_config", "compression_config")
"""The keys of ``config.json`` that state how weights are quantized."""

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?$")
# What a model folder needs; everything else in a hub repository stays there.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.tiktoken", "*.txt", "*.jinja"]
_HUB_IGNORED = ["consolidated*", "original/*", "onnx/*"]
# Largest sizes of the files that are read whole. In use are a tokenizer.json of 34 MB (Gemma 3),
# indexes of some MB, and configs of some hundred KB, with a name for each of many modules.
_LARGE, _SMALL = 64 * 2**20, 8 * 2**20
_LARGE_FILES = re.compile(
    r"(tokenizer|vocab|unlearning|shards|.*\.index)\.json|(tokenizer|spiece)\.model|(vocab|merges)\.txt"
)
_SMALL_FILES = re.compile(
    r"((generation_|adapter_|tokenizer_)?config|special_tokens_map|added_tokens|whp|ensemble)\.json"
    r"|chat_template\.(json|jinja)"
)
# Named by the libraries as where further templates are; the only folder below that they read.
TEMPLATES = "additional_chat_templates"
TOKENIZER_FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
    *("*.model", "*.tiktoken", "tekken.json", "chat_template*", f"{TEMPLATES}/*"),
)
"""What a tokenizer may be stored in; all that is needed of another repository's."""
# What is asked for where nothing was found.
_CHECKPOINT, _TOKENIZER = "a checkpoint folder", "a folder with the tokenizer"
_MANY = 2**16  # tensors of a pickle, whose inside is not looked at
# safetensors itself takes 100 MB; a head of 100,000 tensors has some 12 MB.
_MAX_HEAD = 32 * 2**20

log = logging.getLogger("unlearnbench")


class TensorHead(NamedTuple):
    """One stored tensor."""

    dtype: str
    """As the file calls it: ``BF16``, ``Q4_0``."""
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of one checkpoint."""

    path: str
    """As given: a folder, a file or a hub id."""
    folder: Path
    kind: Kind
    """What the weights are stored as."""
    weights: tuple[Path, ...]
    config: Mapping[str, object]
    """What ``config.json`` holds, an adapter's ``adapter_config.json``; empty for GGUF."""
    revision: str | None
    """The hub's commit; None for local files."""
    tensors: Mapping[str, TensorHead]
    """The tensors by name; empty for pickles, whose inside is not looked at."""
    trusted: bool
    """Whether Python code of its own may run."""

    @property
    def elements(self) -> int:
        """Weights of all tensors; of pickles the most that there can be, one a byte."""
        return sum(t.elements for t in self.tensors.values()) if self.tensors else self.size

    @property
    def count(self) -> int:
        """How many tensors there are; of pickles the most that there can be."""
        return len(self.tensors) or _MANY

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


def read_json(path: Path) -> dict[str, object]:
    """A JSON object from a checkpoint. Raises CheckpointError where it cannot be read as one."""
    value = files.read_json(path, CheckpointError, _LARGE)
    if isinstance(value, dict):
        return value
    raise CheckpointError(f"{path} holds no JSON object")


def find_checkpoint(
    model: str, options: LoadOptions, revision: str | None = None
) -> CheckpointFiles:
    """Of a folder, a ``.gguf`` file or a hub id; CheckpointError for missing or damaged ones."""
    path = _as_path(model)
    if path.is_dir():
        return _inspect_folder(model, path, None, options)
    if not path.is_file():
        wanted = _HUB_PATTERNS + ["*.bin"] * options.allow_pickle
        folder = _download(model, revision, wanted, options)
        return _inspect_folder(model, folder, folder.name, options)
    if path.suffix != ".gguf":
        raise CheckpointError(
            f"{model} is a file; --model takes a checkpoint folder, a hub id or a .gguf file"
        )
    tensors = {name: TensorHead(*head) for name, head in read_gguf_head(path).items()}
    trusted = options.trust_remote_code
    return CheckpointFiles(model, path.parent, "gguf", (path,), {}, None, tensors, trusted)


def find_tokenizer(name: str, options: LoadOptions, revision: str | None = None) -> CheckpointFiles:
    """The files of a folder or hub id of which only the tokenizer is wanted: no weights are there,
    or looked at. CheckpointError where there is nothing, or nothing that may be read.
    """
    folder, commit = _as_path(name, _TOKENIZER), None
    if folder.is_file():
        raise CheckpointError(f"{name} is a file; --tokenizer takes a folder or a hub id")
    if not folder.is_dir():
        wanted = ["config.json", *TOKENIZER_FILES]
        folder = _download(name, revision, wanted, options, _TOKENIZER)
        commit = folder.name
    check_folder(folder)
    trusted = options.trust_remote_code
    return CheckpointFiles(name, folder, "safetensors", (), {}, commit, {}, trusted)


def find_home(
    files: CheckpointFiles, full: CheckpointFiles, options: LoadOptions
) -> CheckpointFiles:
    """Whose tokenizer is taken: what ``--tokenizer`` names, or else that of ``files``; of an
    adapter without one, its base's. CheckpointError where there is none.
    """
    names = ("tokenizer.json", "tokenizer_config.json")
    own = files if any((files.folder / name).is_file() for name in names) else full
    if options.tokenizer is None:
        return own
    if own.kind == "gguf" or tokenizer_files(own.folder):
        message = "--tokenizer: the tokenizer of %s is left out for that of %s"
        log.warning(message, own.path, one_line(options.tokenizer, 120))
    return find_tokenizer(options.tokenizer, options)


def tokenizer_files(folder: Path) -> list[Path]:
    """What a folder's tokenizer is stored in."""
    found = (path for pattern in TOKENIZER_FILES for path in folder.glob(pattern))
    return [path for path in found if path.is_file()]


def _as_path(name: str, what: str = _CHECKPOINT) -> Path:
    try:
        path = Path(name).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such home, a NUL
        said = f"no such path: {one_line(name, 120)} ({one_line(error, 80)})"
        raise CheckpointError(f"{said}; give {what}") from None
    return path


def _download(
    model: str,
    revision: str | None,
    patterns: list[str],
    options: LoadOptions,
    what: str = _CHECKPOINT,
) -> Path:
    if not _HUB_ID.match(model) or model.endswith(".gguf"):
        raise CheckpointError(f"no such path: {one_line(model)}; give {what}")
    from huggingface_hub import snapshot_download

    quiet_hub()
    wanted = patterns + ["*.py"] * options.trust_remote_code
    try:
        return Path(
            snapshot_download(
                model, revision=revision, allow_patterns=wanted, ignore_patterns=_HUB_IGNORED
            )
        )
    except Exception as error:  # the hub client's errors have no common base; all mean "not there"
        at = f"@{revision}" if revision else ""
        raise CheckpointError(
            f"no folder {model} here, and no {model}{at} from the hub; check the name, or give the "
            f"path of {what} ({one_line(error, 150)})"
        ) from error


def check_folder(folder: Path) -> None:
    """Raise CheckpointError for a pipe or device, which would never end, and for a link that leaves
    the folder, to what its author may not see; the hub's cache may link to the blobs beside it.
    """
    home = folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else None
    path = folder
    try:
        for path in [*sorted(folder.iterdir()), *sorted(folder.glob(f"{TEMPLATES}/*"))]:
            if not path.exists():  # a link to nothing is as a missing file, to the libraries too
                continue
            target = path.resolve()
            if not target.is_relative_to(home) and (blobs is None or target.parent != blobs):
                raise CheckpointError(
                    f"{path} is a link that leaves the checkpoint's folder, to "
                    f"{one_line(target, 200)}; refused: put the file itself there"
                )
            facts = path.stat()
            if stat.S_ISREG(facts.st_mode):
                small = _SMALL_FILES.fullmatch(path.name)
                most = _SMALL if small else _LARGE
                if facts.st_size > most and (small or _LARGE_FILES.fullmatch(path.name)):
                    raise CheckpointError(f"{path} is larger than {most >> 20} MiB; refused")
            elif not stat.S_ISDIR(facts.st_mode):
                said = "is no regular file but a pipe or a device; remove it"
                raise CheckpointError(f"{path} {said}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror})") from None


def _inspect_folder(
    model: str, folder: Path, commit: str | None, options: LoadOptions
) -> CheckpointFiles:
    check_folder(folder)
    adapter = (folder / "adapter_config.json").is_file()
    full = "model.safetensors", "pytorch_model.bin"
    if adapter and any(_weight_files(folder, name) for name in full):
        raise CheckpointError(
            f"{folder} holds a full checkpoint and an adapter (adapter_config.json), and "
            "transformers would load both without a word; move one to a folder of its own"
        )
    if not adapter and not (folder / "config.json").is_file():
        raise CheckpointError(_no_config(folder))
    safe, pickled = ("adapter_model.safetensors", "adapter_model.bin") if adapter else full
    kind: Kind = "safetensors"
    weights, tensors = _weight_files(folder, safe), dict[str, TensorHead]()
    if not weights:
        if commit and not options.allow_pickle:  # an index of pickles may be here, they are not
            raise CheckpointError(
                f"{folder} has no weights: neither {safe} nor {safe}.index.json. Pickled ones "
                f"({pickled}) are not fetched from the hub, because a pickle can run code; where "
                "the repository has only such, pass --allow-pickle if you trust its author"
            )
        kind, weights = "pickle", _weight_files(folder, pickled)
        if not weights:
            raise CheckpointError(f"{folder} has no weights: neither {safe} nor {safe}.index.json")
        name = one_line(weights[0].name, 80)
        if not options.allow_pickle:
            raise CheckpointError(
                f"{folder} has only pickled weights ({name}), and a pickle can run code; convert "
                "it to safetensors, or pass --allow-pickle if you trust its author"
            )
        message = (
            "--allow-pickle: %s is loaded from %s, a pickle; only torch's restricted reader keeps "
            "its author's code from running"
        )
        log.warning(message, model, name)
    config = read_json(folder / ("adapter_config.json" if adapter else "config.json"))
    if kind == "safetensors":
        for path in weights:
            tensors |= _safetensors(path, coded=not adapter and is_quantized(config))
    stored, trusted = "adapter" if adapter else kind, options.trust_remote_code
    return CheckpointFiles(model, folder, stored, weights, config, commit, tensors, trusted)


def _no_config(folder: Path) -> str:
    if not any(folder.iterdir()):
        return f"{folder} is empty; --model takes a checkpoint folder"
    gguf = sorted(folder.glob("*.gguf"))
    if gguf:
        return f"{folder} has no config.json; for the GGUF file give its path: --model {gguf[0]}"
    if any((folder / name).is_file() for name in (PAIR_FILE, ENSEMBLE_FILE)):
        parts = sorted(path.parent for path in folder.glob("*/config.json"))
        return (
            f"{folder} holds several checkpoints that answer together, and one is needed here; "
            f"give {one_line(' or '.join(map(str, parts)), 300)}"
        )
    return f"{folder} has no config.json; --model takes a folder written by save_pretrained"


def _weight_files(folder: Path, name: str) -> tuple[Path, ...]:
    """The single weight file, or every shard that the index names."""
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
            raise CheckpointError(f"{folder} lacks the shard {one_line(shard)} of its index")
    return tuple(folder / shard for shard in shards)


def _safetensors(path: Path, coded: bool) -> dict[str, TensorHead]:
    """A file's tensors; refuses damage, and codes without scales, which would pass for values."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with path.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
        if _MAX_HEAD < length < path.stat().st_size:
            raise CheckpointError(f"{path} has a head of {length:,} bytes; refused")
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                tensors[name] = TensorHead(part.get_dtype(), tuple(part.get_shape()))
    except (SafetensorError, OSError) as error:
        raise damaged(path, error) from None
    except MemoryError:  # as it is mapped
        raise CheckpointError(f"{path} is larger than the memory this process may use") from None
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    for name, tensor in tensors.items():
        values = tensor.dtype in ("F64", "F32", "F16", "BF16") or not name.endswith(".weight")
        if not values and not coded:
            raise CheckpointError(
                f"{path}: {one_line(name, 120)} is stored as {tensor.dtype}, as quantized weights "
                "are, and config.json has no quantization_config; give the unquantized checkpoint"
            )
    return tensors


def is_quantized(config: Mapping[str, object]) -> bool:
    """Whether a raw ``config.json`` states that the weights are quantized."""
    return any(config.get(key) is not None for key in SCHEMES)
