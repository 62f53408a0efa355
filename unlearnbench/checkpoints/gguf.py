"""The head of a GGUF file, every count and length held against its size: libraries trust it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import logging
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from unlearnbench.checkpoints.limits import check_numbers
from unlearnbench.errors import CheckpointError, one_line

log = logging.getLogger("unlearnbench")

_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
_TEXT, _ARRAY = 8, 9
# The largest GGUF files in use: some 1,500 tensors, 60 keys, and 4 arrays of 262,144 tokens.
_KEYS, _TENSORS, _ITEMS, _NAME = 2**12, 2**16, 2**22, 2**12


def require_gguf_support() -> None:
    """Transformers 5.23 reads GGUF files bit for bit; 5.20.2 into other weights, without a word."""
    import transformers
    from packaging.version import Version

    if Version(transformers.__version__) < Version("5.23"):
        raise CheckpointError(
            f"transformers {transformers.__version__} reads GGUF files wrongly; update it to 5.23 "
            "or later (Python 3.11), or convert the file to a checkpoint folder"
        )


def read_gguf_head(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor by name; CheckpointError for damage and absurd numbers."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise CheckpointError(f"{path} is no GGUF file; its first bytes are not 'GGUF'")
            keys, tensors = _read(_Reader(file, path.stat().st_size))
    except (ValueError, LookupError, struct.error, OSError) as error:
        raise damaged(path, error) from None
    check_numbers(keys, str(path))
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors")
    return tensors


def damaged(path: Path, error: Exception) -> CheckpointError:
    """What a weight file that is cut short or garbled ends in."""
    said = one_line(error, 150)
    return CheckpointError(f"{path} is truncated or damaged ({said}); copy or download it again")


@dataclass
class _Reader:
    """Takes values from the head of a GGUF file; raises ValueError for those that cannot be."""

    file: BinaryIO
    size: int
    """Bytes of the whole file."""
    items: int = 0
    """Items of all arrays so far."""

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError(f"a length of {count} reaches beyond the file")
        return self.file.read(count)

    def number(self, form: str) -> int:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]

    def name(self) -> str:
        length = self.number("<Q")
        if length > _NAME:
            raise ValueError(f"a name of {length} bytes")
        return self.take(length).decode("utf-8")

    def value(self) -> int | None:
        """The number behind its type; texts and arrays are passed over."""
        kind, count = self.number("<I"), 1
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            self.items += count
            if self.items > _ITEMS:
                raise ValueError(f"arrays of more than {_ITEMS:,} items")
        if kind in _SCALARS:
            self.take(count * struct.calcsize(_SCALARS[kind]))
        elif kind == _TEXT:
            for _ in range(count):
                self.take(self.number("<Q"))
        else:
            raise ValueError(f"a value of unknown type {kind}")
        return None


def _read(reader: _Reader) -> tuple[dict[str, int | None], dict[str, tuple[str, tuple[int, ...]]]]:
    """Keys with their numbers, and the tensors."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    version = reader.number("<I")
    if version not in (2, 3):
        raise ValueError(f"version {version}, of which only 2 and 3 can be read")
    count, key_count = reader.number("<Q"), reader.number("<Q")
    if count > _TENSORS or key_count > _KEYS:
        raise ValueError(f"{count:,} tensors and {key_count:,} keys")
    keys: dict[str, int | None] = {}
    for _ in range(key_count):
        name = reader.name()
        if name in keys:
            raise ValueError(f"key {one_line(name, 60)} stands there twice")
        keys[name] = reader.value()
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    places: list[tuple[int, int]] = []
    for _ in range(count):
        name, dimensions = reader.name(), reader.number("<I")
        if not 1 <= dimensions <= 4:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        shape = tuple(reader.number("<Q") for _ in range(dimensions))
        number = reader.number("<I")
        if number not in set(GGMLQuantizationType):
            raise CheckpointError(
                f"{reader.file.name}: tensor {one_line(name, 60)} is of type {number}, which "
                "gguf-py does not know; update gguf, or copy the file again if it is damaged"
            )
        kind = GGMLQuantizationType(number)
        block, width = GGML_QUANT_SIZES[kind]
        if name in tensors:
            raise ValueError(f"tensor {one_line(name, 60)} stands there twice")
        tensors[name] = kind.name, shape
        places.append((reader.number("<Q"), math.prod(shape) // block * width))
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"alignment {one_line(alignment, 20)}")
    end, start = 0, -(-reader.file.tell() // alignment) * alignment
    for offset, size in sorted(places):
        if offset < end:
            raise ValueError("two tensors overlap")
        end = offset + size
        if start + end > reader.size:
            raise ValueError(f"a tensor ends {start + end - reader.size:,} bytes beyond the file")
    return keys, tensors


# llama.cpp's names of splitting rules (src/llama-vocab.cpp), as the key tokenizer.ggml.pre has
# them: those of GPT-2, which transformers takes for every name that it does not know; those that
# take digits apart before; and those of which a whole word needs no merges and texts begin with the
# begin token where the file does not say so.
_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4"}
_DIGITS = {"starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"}
_WHOLE = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"}
_WHOLE |= {"jina-v5-nano", "tekken"}


def follow_gguf(tokenizer: Any, path: Path) -> None:
    """Make ``tokenizer``, as transformers reads it from a GGUF file, do what the file says.
    CheckpointError where the file names no rule that is known here.
    """
    from tokenizers import pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
    from transformers.integrations.gguf.reader import read_gguf_metadata

    said: dict[str, Any] = read_gguf_metadata(str(path))[0]
    keys = ("model", "pre", "add_bos_token", "add_space_prefix")
    model, rule, begins, blank = (said.get(f"tokenizer.ggml.{key}") for key in keys)
    if model == "llama" and isinstance(blank, bool):
        first = tokenizer.tokenize("x")[:1]
        if blank != (first[:1] != ["x"]):
            raise CheckpointError(
                f"{path} says add_space_prefix {blank}, and transformers reads it otherwise; use "
                "the checkpoint folder that the file was made from"
            )
    if model != "gpt2":
        return
    if rule not in _GPT2 | _DIGITS | GGUF_PRE_TOKENIZER_SPLITS.keys():
        raise CheckpointError(
            f"{path} splits texts by the rule {one_line(rule, 60)!r} (tokenizer.ggml.pre), which "
            "transformers does not know and would take for GPT-2's; use the checkpoint folder that "
            "the file was made from"
        )
    backend = tokenizer.backend_tokenizer
    if rule in _DIGITS:
        digits = pre_tokenizers.Digits(individual_digits=True)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
    if rule in _WHOLE:
        backend.model.ignore_merges = True
    if begins is None and tokenizer.bos_token is not None:
        tokenizer.add_bos_token = rule in _WHOLE
        how = "begin" if rule in _WHOLE else "do not begin"
        message = "%s does not say whether texts begin with %s; as in llama.cpp for %s, they %s so"
        log.warning(message, path, one_line(tokenizer.bos_token, 40), rule, how)
