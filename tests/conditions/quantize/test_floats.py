"""Small floating-point numbers and 8-bit activations, against the formulas written in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conditions.helpers import UP, load, module_of, own
from tests.conditions.quantize.test_quantize_references import heavy_tailed
from unlearnbench import conditions
from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.conditions.quantize import floats
from unlearnbench.errors import NotInForceError
from unlearnbench.models.packable import mixes_rows, unrounded

pytest.importorskip("compressed_tensors", reason="pip install 'unlearnbench[compressed-tensors]'")

SPECS = {spec.name: spec for spec in floats.CONDITIONS}
Doubles = NDArray[np.float64]


def e4m3() -> Doubles:
    """Every number of FP8 E4M3 from 0 on, in order, from its bits: exponent bias 7, no infinity."""
    found = [
        mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7)
        for exponent in range(16)
        for mantissa in range(8)
    ]
    return np.array(found[:-1])  # the last one is NaN


E4M3, E2M1 = e4m3(), np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nearest(x: Any, table: Doubles) -> Doubles:
    """The nearest number of the table with x's sign; of two as near, that with an even mantissa."""
    size = np.minimum(np.abs(np.asarray(x, np.float64)), table[-1])
    above = np.searchsorted(table, size).clip(1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    return np.asarray(np.sign(x) * np.where(up, high, low))


def power_of_two(most: Doubles, top: int) -> Doubles:
    """The largest magnitude's power of two, one more from 1.75 of it on, less that of the type."""
    exponent = np.floor(np.log2(np.where(most > 0, most, 1)))
    exponent += most / 2.0**exponent >= 1.75
    return np.asarray(2.0 ** (exponent - top))


def in_groups(weight: Any, size: int) -> Doubles:
    return np.asarray(weight, np.float64).reshape(len(weight), -1, size)


def reference(name: str, weight: Any) -> Doubles:
    exact = np.asarray(weight, np.float64)
    if name.startswith("fp8-e4m3-b128"):
        made = np.zeros_like(exact)
        for i in range(0, exact.shape[0], 128):
            for j in range(0, exact.shape[1], 128):
                block = exact[i : i + 128, j : j + 128]
                scale = np.abs(block).max() / 448 or 1.0
                made[i : i + 128, j : j + 128] = nearest(block / scale, E4M3) * scale
        return made
    if name.startswith("fp8"):
        most = np.abs(exact).max() if "tensor" in name else np.abs(exact).max(1, keepdims=True)
        scale = np.where(most > 0, most / 448, 1)
        return nearest(exact / scale, E4M3) * scale
    if name == "int8-w8a8":
        scale = np.abs(exact).max(1, keepdims=True) / 127.5
        scale = np.where(scale > 0, scale, 1)
        return np.asarray(np.clip(np.round(exact / scale), -128, 127) * scale)
    parts = in_groups(weight, 16 if name == "nvfp4" else 32)
    most = np.abs(parts).max(-1, keepdims=True)
    if name == "nvfp4":
        whole = 448 * 6 / np.abs(exact).max()
        scale = nearest(most / 6 * whole, E4M3) / whole
    else:
        scale = power_of_two(most, 2 if name == "mxfp4" else 8)
    table = E4M3 if name == "mxfp8" else E2M1
    scale = np.where(scale > 0, scale, 1)
    return (nearest(parts / scale, table) * scale).reshape(exact.shape)


def awkward() -> NDArray[np.float32]:
    weight = heavy_tailed(160, 192)
    weight[3], weight[4, :64] = 0, 0
    weight[5] = np.abs(weight[5])
    weight[6, 190] = 2
    weight[7] *= np.float32(1e-3)
    return weight


@pytest.mark.parametrize("name", list(SPECS))
def test_weights_are_the_formula(name: str) -> None:
    weight = awkward()
    found, expected = conditions.encode(SPECS[name], torch.from_numpy(weight)), None
    expected = reference(name, weight)
    values = found.values.double().numpy()
    # A weight that lies, but for a rounding error, between two numbers may go either way.
    off = ~np.isclose(values, expected, rtol=2e-6, atol=1e-12)
    assert off.mean() < (2e-3 if name == "int8-w8a8" else 2e-4)
    assert np.abs(values - expected).max() <= np.abs(weight).max() / 16
    assert (values[3] == 0).all()
    assert found.codes.dtype == (torch.int8 if name == "int8-w8a8" else torch.uint8)
    assert len(found.codes.unique()) <= 2 ** int(SPECS[name].bits or 0)


@pytest.mark.parametrize(
    ("name", "row", "made"),
    [
        # absmax 6: scale 1; halves go to the even mantissa.
        ("mxfp4", [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], [6, 0, 1, 1, 2, 2, 4, 4]),
        # 7 = 1.75 x 4 takes the next power of two, 8 / 4 = 2.
        ("mxfp4", [7, 1, 3, 0, 0, 0, 0, 0], [8, 1, 3, 0, 0, 0, 0, 0]),
        ("mxfp4", [6.9, 1, 3, 0, 0, 0, 0, 0], [6, 1, 3, 0, 0, 0, 0, 0]),
        # absmax 448: scale 1; a step of 32 above 256.
        ("fp8-e4m3", [448, 256, 272, 304, 300, 1, 1.0625, 2**-9], [448, 256, 256, 320, 288, 1, 1]),
    ],
)
def test_numbers_by_hand(name: str, row: list[float], made: list[float]) -> None:
    weight = torch.zeros(1, 32)
    weight[0, : len(row)] = torch.tensor(row)
    found = conditions.encode(SPECS[name], weight).values[0, : len(made)]
    assert found.tolist() == made


@pytest.mark.parametrize("name", ["fp8-e4m3-dynamic", "int8-w8a8"])
def test_each_tokens_inputs_are_rounded_by_themselves(source: CheckpointSource, name: str) -> None:
    spec = SPECS[name]
    inputs = heavy_tailed(12, 64).reshape(3, 4, 64)
    table = "fp8-e4m3" if "fp8" in name else name
    expected = reference(table, inputs.reshape(12, 64)).reshape(inputs.shape)
    found = floats.activations(spec, torch.from_numpy(inputs))
    close = np.isclose(found.numpy(), expected, rtol=2e-6, atol=1e-12)
    assert (~close).mean() < 5e-3
    alone = floats.activations(spec, torch.from_numpy(inputs[1:2, 2:3]))
    assert torch.equal(alone[0, 0], found[1, 2])
    # In the model: a layer gives what its rounded inputs give.
    layer: Any = module_of(load(source, name), UP)
    given = torch.from_numpy(inputs)
    weight = layer.weight
    np.testing.assert_allclose(weight.numpy(), reference(table, own(source)), atol=0.02)
    with torch.no_grad():
        assert torch.allclose(layer(given), found @ weight.T, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(layer(given), given @ weight.T, rtol=1e-4, atol=1e-4)
        # And packing sees that, and switches it off where it asks whether rows move each other.
        with unrounded(layer):
            assert torch.allclose(layer(given), given @ weight.T, rtol=1e-4, atol=1e-4)
    assert not mixes_rows(layer)


def test_columns_that_make_no_groups_are_refused(make_checkpoint: Any) -> None:
    from unlearnbench.checkpoints.checkpoint import open_checkpoint
    from unlearnbench.checkpoints.options import LoadOptions

    odd = open_checkpoint(str(make_checkpoint("odd-floats", hidden_size=80)), LoadOptions())
    with pytest.raises(NotInForceError, match=r"mxfp4: 80 columns make no groups of 32; see model"):
        load(odd, "mxfp4")
