"""Blocks as llama.cpp's library writes them, against its own way back and golden bytes."""

from __future__ import annotations

import ctypes
import hashlib
import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unlearnbench.conditions.quantize import blocks
from unlearnbench.errors import NotInForceError, PrecisionError

GOLDEN = Path(__file__).parent / "data" / "blocks.json"
ROWS, COLUMNS = 4, 512


def weight() -> NDArray[np.float32]:
    """Alike on every machine: tails, a zero block, one sign, one large weight."""
    steps = (np.arange(ROWS * COLUMNS, dtype=np.int64) * 7919) % 2003 - 1001
    part = (steps.astype(np.float32) / np.float32(1024)).reshape(ROWS, COLUMNS)
    found: NDArray[np.float32] = part * part * part
    found[1, :256] = 0
    found[2] = np.abs(found[2])
    found[3, 77] = 16
    return found


def importance() -> NDArray[np.float32]:
    return np.asarray(1 + np.arange(COLUMNS) % 17, np.float32)


def golden() -> Any:
    return json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def library() -> Any:
    pytest.importorskip("libggml", reason="pip install 'unlearnbench[ggml]'")
    return blocks._library()


@pytest.mark.parametrize("kind", list(blocks.TYPES))
@pytest.mark.parametrize("weighed", [False, True])
def test_blocks_are_those_that_the_library_wrote(library: Any, kind: str, weighed: bool) -> None:
    if platform.machine() != "x86_64":
        pytest.skip(
            "the golden bytes are of x86-64, and other processors round last bits otherwise"
        )
    packed, stated = (
        blocks.quantize(kind, weight(), importance() if weighed else None),
        golden()[kind],
    )
    if not weighed:
        assert packed[3, : len(stated["first"]) // 2].tobytes().hex() == stated["first"]
    assert hashlib.sha256(packed.tobytes()).hexdigest() == stated["weighed" if weighed else "plain"]


# The library's own names of what turns blocks into numbers.
BACK = {kind: "dequantize_row_" + kind.lower().replace("_k", "_K") for kind in blocks.TYPES}


@pytest.mark.parametrize("kind", list(blocks.TYPES))
def test_gguf_py_reads_blocks_as_the_library_does(library: Any, kind: str) -> None:
    packed = blocks.quantize(kind, weight())
    back = np.zeros((ROWS, COLUMNS), np.float32)
    function = getattr(library, BACK[kind])
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    function(packed.ctypes.data, back.ctypes.data, back.size)
    np.testing.assert_array_equal(blocks.values(kind, packed), back)
    assert np.abs(back - weight()).max() > 0


@pytest.mark.parametrize("kind", list(blocks.TYPES))
def test_equal_codes_are_equal_values_within_a_group(library: Any, kind: str) -> None:
    packed, size = blocks.quantize(kind, weight()), blocks.TYPES[kind].group
    codes = blocks.codes(kind, packed).reshape(-1, size)
    values = blocks.values(kind, packed).reshape(-1, size)
    assert len(np.unique(codes)) <= 2 ** blocks.TYPES[kind].bits
    assert len(np.unique(codes)) > 0.8 * 2 ** blocks.TYPES[kind].bits or kind == "Q8_0"
    for row, numbers in zip(codes, values, strict=True):
        step = np.ptp(numbers) / max(1, np.ptp(row))
        assert len(set(zip(row.tolist(), numbers.tolist(), strict=True))) == len(np.unique(row))
        if not kind.startswith("IQ"):  # an even grid: the values are the codes, scaled and shifted
            line = numbers - numbers[0] - (row - row[0]).astype(np.float32) * step
            other = numbers - numbers[0] + (row - row[0]).astype(np.float32) * step
            off = min(np.abs(line).max(), np.abs(other).max())
            assert off <= 1e-4 * max(1e-6, np.abs(numbers).max())


def test_q4_k_against_its_layout_in_plain_python(library: Any) -> None:
    """llama.cpp's block_q4_K: d and dmin in fp16, eight pairs of 6-bit scale and minimum, nibbles
    in four pairs of 32.
    """
    packed = blocks.quantize("Q4_K", weight())
    found = blocks.values("Q4_K", packed)[3]
    for number in range(COLUMNS // 256):
        block = packed[3, 144 * number : 144 * (number + 1)].tobytes()
        d, dmin = (float(x) for x in np.frombuffer(block[:4], np.float16))
        six = block[4:16]
        for part in range(8):
            if part < 4:
                scale, least = six[part] & 63, six[part + 4] & 63
            else:
                scale = (six[part + 4] & 15) | ((six[part - 4] >> 6) << 4)
                least = (six[part + 4] >> 4) | ((six[part] >> 6) << 4)
            for i in range(32):
                byte = block[16 + 32 * (part // 2) + i]
                code = byte >> 4 if part % 2 else byte & 15
                expected = np.float32(np.float32(d * scale) * code) - np.float32(dmin * least)
                assert found[256 * number + 32 * part + i] == pytest.approx(expected, rel=1e-6)


def test_importance_moves_errors_to_columns_that_matter_less(library: Any) -> None:
    rng = np.random.default_rng(0)
    exact = np.asarray(rng.standard_t(3, (64, 256)) * 0.02, np.float32)
    matters = np.where(np.arange(256) % 2, 10.0, 0.1).astype(np.float32)
    squares = [
        ((blocks.values("Q4_K", blocks.quantize("Q4_K", exact, given)) - exact) ** 2).sum(0)
        for given in (None, matters)
    ]
    plain, weighed = (found @ matters for found in squares)
    assert weighed < 0.9 * plain
    assert squares[1].sum() > squares[0].sum()


@pytest.mark.parametrize(
    ("columns", "value", "given", "said"),
    [
        (320, 0.5, None, "320 columns make no blocks of 256"),
        (256, np.nan, None, "a weight is NaN or infinite"),
        (256, np.inf, None, "a weight is NaN or infinite"),
        (256, 0.5, [1.0] * 255, "importance is not 256 finite numbers"),
        (256, 0.5, [-1.0] * 256, "importance is not 256 finite numbers"),
        (256, 0.5, [np.nan] * 256, "importance is not 256 finite numbers"),
    ],
)
def test_what_cannot_be_quantized_never_reaches_the_library(
    columns: int, value: float, given: Any, said: str
) -> None:
    matters = None if given is None else np.asarray(given, np.float32)
    with pytest.raises(NotInForceError, match=said):
        blocks.quantize("Q4_K", np.full((2, columns), value, np.float32), matters)


def test_a_library_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks._library.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PrecisionError, match="llama.cpp's library cannot be loaded"):
        blocks.quantize("Q4_K", np.ones((1, 256), np.float32))
    blocks._library.cache_clear()
