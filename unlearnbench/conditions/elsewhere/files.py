"""What ``--deployed`` names: found, and its scheme read, before any weight is."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.checkpoints.find import CheckpointFiles, files_sha256, find_checkpoint
from unlearnbench.checkpoints.gguf_parts import GgufFile, open_gguf
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.packed import StoredScheme, stored_scheme
from unlearnbench.errors import CheckpointError, OptionError, one_line
from unlearnbench.results import DEPLOYED, DeployedFile

_VLLM = ("awq", "compressed-tensors", "gptq")


@dataclass(frozen=True)
class Deployed:
    """A checkpoint that another tool quantized."""

    path: str
    """As given."""
    gguf: GgufFile | None
    folder: CheckpointFiles | None
    """One of the two."""
    scheme: StoredScheme

    @property
    def condition(self) -> str:
        """What a run of it is called."""
        return DEPLOYED + self.scheme.name

    @property
    def packed(self) -> Path | None:
        """The folder where vLLM has kernels for what it holds; None: its plain weights are run."""
        return self.folder.folder if self.folder and self.scheme.method in _VLLM else None

    @functools.cached_property
    def record(self) -> DeployedFile:
        """What results say of it; hashes its files."""
        if self.gguf is not None:
            parts, revision = self.gguf.parts, None
        else:
            assert self.folder is not None  # noqa: S101 - one of the two
            parts, revision = self.folder.weights, self.folder.revision
        return DeployedFile(
            path=self.path,
            revision=revision,
            format="safetensors" if self.gguf is None else "gguf",
            weights_sha256=files_sha256(parts),
        )


def open_all(names: Sequence[str], options: LoadOptions) -> dict[str, Deployed]:
    """Every checkpoint of ``--deployed``, by condition.

    Raises:
        CheckpointError: one is missing, damaged, unsafe or not quantized.
        PrecisionError: it is quantized by a scheme that cannot be read here.
        OptionError: two of them have one scheme, and so one run folder.
    """
    found: dict[str, Deployed] = {}
    for name in dict.fromkeys(names):
        one = open_deployed(name, options)
        if (other := found.setdefault(one.condition, one)) is not one:
            raise OptionError(
                f"--deployed: {one_line(other.path, 120)} and {one_line(name, 120)} are both "
                f"{one.scheme.name}; run them apart, each with its own --output"
            )
    return found


def open_deployed(name: str, options: LoadOptions) -> Deployed:
    """Raises as ``open_all``."""
    path = Path(name).expanduser()
    if name.endswith(".gguf") and path.is_file():
        file = open_gguf(path, name)
        return Deployed(name, file, None, gguf_scheme(file))
    files = find_checkpoint(name, stranger(options))
    if files.kind != "safetensors":
        raise CheckpointError(
            f"--deployed {name} is stored as {files.kind}; give a .gguf file or a folder of "
            "safetensors"
        )
    if files.config.get("auto_map"):
        raise CheckpointError(
            f"--deployed {name} brings its own Python code (auto_map in config.json), which never "
            "runs; take auto_map out if transformers knows the architecture"
        )
    scheme = stored_scheme(files.config, name)
    if scheme is None:
        raise CheckpointError(
            f"--deployed {name} is not quantized: its config.json has no quantization_config; "
            "evaluate it with --model, as a checkpoint of its own"
        )
    return Deployed(name, None, files, scheme)


def stranger(options: LoadOptions) -> LoadOptions:
    """How a deployed folder is opened: what is allowed to the model is not allowed to it."""
    given = {"revision": None, "base": None, "tokenizer": None}
    return options.updated({**given, "trust_remote_code": False, "allow_pickle": False})


def gguf_scheme(file: GgufFile) -> StoredScheme:
    """The mixture that the file calls itself by, and the type of most of its weights.
    CheckpointError where none is quantized.
    """
    from gguf import LlamaFileType

    counts = file.packed()
    if not counts:
        raise CheckpointError(
            f"--deployed {file.path} is not quantized: all of its tensors are plain numbers; "
            "evaluate it with --model, as a checkpoint of its own"
        )
    kind = counts.most_common(1)[0][0]
    said = file.said.get("general.file_type")
    known = {member.value: member.name.removeprefix("MOSTLY_") for member in LlamaFileType}
    called = known.get(said, kind) if isinstance(said, int) else kind
    if called in ("ALL_F32", "F16", "BF16", "GUESSED"):
        called = kind
    held = ", ".join(f"{name} {n:,}" for name, n in counts.most_common())
    digits = re.search(r"\d", kind)
    bits = 1.6 if kind.startswith("TQ") else float(digits[0]) if digits else 8.0
    text = f"llama.cpp {called}, weights by type: {held}"
    return StoredScheme("gguf", bits, text, f"gguf-{called.lower()}")
