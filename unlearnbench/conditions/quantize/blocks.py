"""Blocks of weights, written by llama.cpp's own library (libggml of ggml-org/ggml, as the package
libggml-python brings it) and read by gguf-py.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from unlearnbench.errors import NotInForceError, PrecisionError, one_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BlockType(NamedTuple):
    """How a type lays out a block; sizes are gguf-py's (``GGML_QUANT_SIZES``)."""

    bits: int
    """Of a code."""
    group: int
    """Weights that share constants."""
    neutral: tuple[tuple[int, str], ...]
    """(byte, hex) of constants with which a block's values are its codes: scales 1, minima 0."""


_ONE, _ONES_AND_ZEROS = "003c", "003c0000"  # in fp16
_K = "01010101" + "00000000" + "01010101"  # eight 6-bit scales of 1, minima of 0, in 12 bytes
_33 = "11" * 8 + "aa" * 4  # sixteen 6-bit scales of 33, which stand for 1, in 12 bytes
TYPES = {
    "Q8_0": BlockType(8, 32, ((0, _ONE),)),
    "Q5_1": BlockType(5, 32, ((0, _ONES_AND_ZEROS),)),
    "Q5_0": BlockType(5, 32, ((0, _ONE),)),
    "Q4_1": BlockType(4, 32, ((0, _ONES_AND_ZEROS),)),
    "Q4_0": BlockType(4, 32, ((0, _ONE),)),
    "Q2_K": BlockType(2, 16, ((0, "01" * 16), (80, _ONES_AND_ZEROS))),
    "Q3_K": BlockType(3, 16, ((96, _33 + _ONE),)),
    "Q4_K": BlockType(4, 32, ((0, _ONES_AND_ZEROS + _K),)),
    "Q5_K": BlockType(5, 32, ((0, _ONES_AND_ZEROS + _K),)),
    "Q6_K": BlockType(6, 16, ((192, "01" * 16 + _ONE),)),
    "IQ4_NL": BlockType(4, 32, ((0, _ONE),)),
    "IQ4_XS": BlockType(4, 32, ((0, _ONE + "aaaa" + "11" * 4),)),
}


@functools.cache
def _library() -> Any:
    """libggml, loaded. PrecisionError where it cannot be."""
    found = importlib.util.find_spec("libggml")
    folders = [Path(place) for place in (found.submodule_search_locations or ())] if found else []
    files = [path for folder in folders for path in sorted(folder.glob("lib*/*ggml-base.*"))]
    shared = [path for path in files if path.suffix in (".so", ".dylib", ".dll")]
    try:
        library = ctypes.CDLL(str(shared[0]))
        library.ggml_quantize_chunk.restype = ctypes.c_size_t
        pointer, whole = ctypes.c_void_p, ctypes.c_int64
        library.ggml_quantize_chunk.argtypes = [
            ctypes.c_int,  # the type
            pointer,  # weights
            pointer,  # blocks
            whole,  # of the first weight
            whole,  # rows
            whole,  # columns
            pointer,  # importance, or null
        ]
    except (OSError, AttributeError, IndexError) as error:
        raise PrecisionError(
            f"llama.cpp's library cannot be loaded ({one_line(error, 150)}); install it again: "
            "pip install --force-reinstall 'unlearnbench[ggml]'"
        ) from None
    return library


def sizes(kind: str) -> tuple[int, int]:
    """Weights and bytes of a block."""
    import gguf

    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(weights), int(size)


def quantize(
    kind: str, weight: NDArray[np.float32], importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """The blocks of a weight (out, in) as llama.cpp writes them, (out, bytes). importance: of each
    column, (in,), llama.cpp's importance matrix.

    Raises:
        NotInForceError: a value is not finite, or the columns make no blocks.
    """
    import gguf
    import numpy as np

    block, size = sizes(kind)
    rows, columns = weight.shape
    if columns % block:
        raise NotInForceError(f"{columns} columns make no blocks of {block}")
    if not np.isfinite(weight).all():
        raise NotInForceError("a weight is NaN or infinite")
    given = np.ascontiguousarray(weight, np.float32)
    packed = np.zeros((rows, columns // block * size), np.uint8)
    weighed = None
    if importance is not None:
        weighed = np.ascontiguousarray(importance, np.float32)
        if weighed.shape != (columns,) or not np.isfinite(weighed).all() or (weighed < 0).any():
            raise NotInForceError(f"its importance is not {columns} finite numbers of 0 or more")
    written = _library().ggml_quantize_chunk(
        int(gguf.GGMLQuantizationType[kind]),
        *(given.ctypes.data, packed.ctypes.data, 0, rows, columns),
        None if weighed is None else weighed.ctypes.data,
    )
    if written != packed.nbytes:
        raise NotInForceError(f"llama.cpp wrote {written} bytes, and {packed.nbytes} are due")
    return packed


def values(kind: str, packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What blocks stand for, (out, in)."""
    import gguf
    import numpy as np

    return np.array(
        gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[kind]), dtype=np.float32
    )


def entries(kind: str) -> Sequence[int]:
    """What its codes can be, rising."""
    if kind.startswith("IQ4"):
        import gguf

        return [int(value) for value in gguf.quants.IQ4_NL.kvalues]
    half = 2 ** (TYPES[kind].bits - 1)
    if kind == "Q8_0":
        return range(1 - half, half)
    return range(-half, half) if kind in ("Q3_K", "Q4_0", "Q5_0", "Q6_K") else range(2 * half)


def codes(kind: str, packed: NDArray[np.uint8]) -> NDArray[np.int16]:
    """The code of every weight, (out, in): what blocks stand for with neutral constants. Of IQ4_NL
    and IQ4_XS, the entry of their table.
    """
    import numpy as np

    _, size = sizes(kind)
    neutral = packed.reshape(-1, size).copy()
    for start, constants in TYPES[kind].neutral:
        part = np.frombuffer(bytes.fromhex(constants), np.uint8)
        neutral[:, start : start + len(part)] = part
    return np.asarray(values(kind, neutral.reshape(packed.shape)), np.int16)
