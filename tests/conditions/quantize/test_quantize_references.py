"""Weights in force against the formulas of every public scheme, written again in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conditions.helpers import (
    UP,
    Floats,
    error,
    in_force,
    load,
    module_of,
    own,
    require_library,
    short_calibration,
)
from unlearnbench import conditions as backends
from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.conditions.base import Codes
from unlearnbench.conditions.quantize.calibration import token_batches
from unlearnbench.conditions.quantize.rtn import quantize
from unlearnbench.errors import PrecisionError

SPECS = backends.precisions()
RTN = sorted(name for name in SPECS if name.startswith("rtn"))
# Without those of which a matrix's place decides; see test_ggml.
CODED = sorted(n for n, s in SPECS.items() if backends.has_codes(s) and not s.by_matrix)
DOWN = "model.layers.1.mlp.down_proj"


def rtn(weight: Floats, bits: int, group: int | None, asym: bool) -> tuple[Any, Any, Any]:
    """Codes, and the step and zero point of every weight; one group after another."""
    codes, steps, zeros = (np.zeros(weight.shape, np.float32) for _ in range(3))
    size = group or weight.shape[1]
    for i, row in enumerate(weight):
        for start in range(0, len(row), size):
            part = slice(start, start + size)
            w = row[part]
            if asym:
                low, high = min(w.min(), np.float32(0)), max(w.max(), np.float32(0))
                step = np.float32((high - low) / np.float32(2**bits - 1))
                zero = np.round(-low / step) if step else np.float32(0)
                bottom, top = 0, 2**bits - 1
            else:
                top = 2 ** (bits - 1) - 1
                bottom, zero = -top, np.float32(0)
                step = np.float32(np.abs(w).max() / np.float32(top))
            scaled = np.round(w / step) if step else np.zeros_like(w)  # numpy rounds half to even
            codes[i, part] = np.clip(scaled + zero, bottom, top)
            steps[i, part], zeros[i, part] = step, zero
    return codes, steps, zeros


def heavy_tailed(rows: int, columns: int, seed: int = 0) -> Floats:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_t(3, (rows, columns)) * 0.02, np.float32)


def awkward_weight() -> Floats:
    """150 columns, so every group size leaves a shorter last group; groups that are all zero, all
    positive, all negative, constant, and with one huge weight.
    """
    weight = heavy_tailed(8, 150)
    weight[1] = 0
    weight[2] = np.abs(weight[2]) + np.float32(0.5)
    weight[3] = -np.abs(weight[3]) - np.float32(0.5)
    weight[4] = 0.25
    weight[5, 140] = 50
    weight[6, :32] = 0
    return weight


@pytest.mark.parametrize("name", RTN)
def test_rtn_is_the_stated_formula(name: str) -> None:
    spec, weight = SPECS[name], awkward_weight()
    size = spec.options["group_size"]
    group, asym = None if size == "channel" else int(size), not spec.options["symmetric"]
    codes, step, zero = rtn(weight, int(spec.bits or 0), group, asym)
    found = quantize(torch.from_numpy(weight), int(spec.bits or 0), group, asym)
    np.testing.assert_array_equal(found.codes.numpy(), codes)
    np.testing.assert_allclose(found.values().numpy(), (codes - zero) * step, rtol=1e-6)
    assert (found.values().numpy()[1] == 0).all()
    # Half a step at most, but where a symmetric or clamped end cuts off.
    inside = np.abs(found.values().numpy() - weight) <= step * 0.5001 + 1e-7
    assert inside.all() or (asym and np.abs(found.values().numpy() - weight).max() <= step.max())
    coded = backends.encode(spec, torch.from_numpy(weight))
    np.testing.assert_array_equal(coded.codes.numpy(), codes)
    np.testing.assert_allclose(coded.values.numpy(), (codes - zero) * step, rtol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
def test_rtn_against_plain_python(bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((5, 9)).astype(np.float32)
    weight[2] = 0
    found = quantize(torch.from_numpy(weight), bits)
    codes, step = found.codes, found.step
    top = 2 ** (bits - 1) - 1
    for i, row in enumerate(weight):
        absmax = max(abs(float(x)) for x in row)
        for j, value in enumerate(row):
            expected = round(float(value) / (absmax / top)) if absmax else 0
            assert codes[i, j] == expected  # Python's round is half-to-even too
        assert float(step[i, 0]) == pytest.approx(absmax / top)
        if absmax:
            assert codes[i].abs().max() == top


def test_rtn_rounds_halves_to_even() -> None:
    row = torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]])  # step 1
    assert quantize(row, 4).codes.tolist() == [[7, 0, 2, 2, 0, -2, -2]]


@pytest.mark.parametrize("bits", [8, 6, 5, 4, 3, 2])
def test_a_zero_point_is_an_integer_code_and_zero_stays_zero(bits: int) -> None:
    weight = awkward_weight()
    weight[:, 7] = 0
    found = quantize(torch.from_numpy(weight), bits, 32, True)
    zero = found.zero.numpy()
    assert (zero == np.round(zero)).all()
    assert zero.min() >= 0
    assert zero.max() <= 2**bits - 1
    assert (found.values().numpy()[:, 7] == 0).all()


@pytest.mark.parametrize("name", ["rtn-int4", "rtn-int4-g32", "rtn-int8-asym", "rtn-int2-g64-asym"])
def test_rtn_in_the_model_is_the_formula_on_the_checkpoint(
    source: CheckpointSource, name: str
) -> None:
    spec, weight = SPECS[name], own(source)
    size = spec.options["group_size"]
    group, asym = None if size == "channel" else int(size), not spec.options["symmetric"]
    codes, step, zero = rtn(weight, int(spec.bits or 0), group, asym)
    np.testing.assert_allclose(in_force(source, name), (codes - zero) * step, rtol=1e-6)
    head = source.state_dict()["lm_head.weight"]
    assert torch.equal(module_of(load(source, name), "lm_head").weight, head)


# Code books, as published: NF4 in QLoRA's appendix E, FP4 as sign x {0, 1/192, 1/6, ...}.
NF4 = np.array(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
_FP4_POSITIVE = np.array([0.0, 0.0052083333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0])
FP4 = np.concatenate([-_FP4_POSITIVE[:0:-1], _FP4_POSITIVE])


@pytest.mark.parametrize(("name", "book"), [("bnb-nf4", NF4), ("bnb-fp4", FP4)])
@pytest.mark.parametrize("key", [UP, DOWN])
def test_4bit_weights_are_the_nearest_code_times_absmax_of_64(
    source: CheckpointSource, name: str, book: NDArray[Any], key: str
) -> None:
    blocks = own(source, key).reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = book[np.abs(blocks[..., None] / scale[..., None] - book).argmin(-1)] * scale
    difference = np.abs(in_force(source, name, key).reshape(-1, 64) - nearest) / scale
    # A value halfway between two codes may go either way; nothing else may differ.
    assert (difference > 1e-5).mean() < 1e-3


@pytest.mark.parametrize("shape", [(48, 80), (64, 48)])
def test_4bit_weights_are_right_or_refused_where_columns_make_no_blocks(
    make_checkpoint: Any, shape: tuple[int, int]
) -> None:
    from unlearnbench.checkpoints.checkpoint import open_checkpoint
    from unlearnbench.checkpoints.options import LoadOptions

    rows, columns = shape
    sizes = {"hidden_size": columns, "intermediate_size": rows}
    odd = open_checkpoint(str(make_checkpoint("odd", **sizes)), LoadOptions())
    blocks = own(odd).reshape(-1, 64)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    nearest = NF4[np.abs(blocks[..., None] / scale[..., None] - NF4).argmin(-1)] * scale
    try:
        found = in_force(odd, "bnb-nf4").reshape(-1, 64)
    except PrecisionError:
        return
    assert (np.abs(found - nearest) / scale > 1e-5).mean() < 1e-3


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_double_quantization_moves_scales_a_little_and_saves_bytes(
    source: CheckpointSource, kind: str
) -> None:
    single, double = in_force(source, f"bnb-{kind}"), in_force(source, f"bnb-{kind}-dq")
    blocks = single.reshape(-1, 64), double.reshape(-1, 64)
    at = np.abs(blocks[0]).argmax(axis=1)[:, None]
    scales = [np.take_along_axis(np.abs(b), at, axis=1) for b in blocks]
    off = np.abs(scales[1] / scales[0] - 1)
    assert off.max() < 0.01  # 8 bits within 256 alike scales
    assert off.max() > 0
    # Every weight of a block moved by the same factor: the codes are the same.
    np.testing.assert_allclose(blocks[1], blocks[0] * scales[1] / scales[0], atol=1e-6)
    proofs = [load(source, n).condition.proof for n in (f"bnb-{kind}", f"bnb-{kind}-dq")]
    one, two = proofs
    assert one is not None
    assert two is not None
    packed = [p.weight_bytes - 4 * sum(p.uncovered.values()) for p in (one, two)]
    assert packed[0] * 8 / one.covered_weights == 4.5
    assert packed[1] * 8 / two.covered_weights < 4.14


@pytest.mark.parametrize("key", [UP, DOWN])
def test_int8_weights_against_absmax_per_row(source: CheckpointSource, key: str) -> None:
    module = module_of(load(source, "bnb-int8"), key)
    weight = own(source, key)
    expected = np.round(weight / np.abs(weight).max(axis=1, keepdims=True) * 127)
    found = module.weight.data.numpy()
    assert np.abs(found - expected).max() <= 1  # weights are rounded to fp16 inside the library
    assert (found != expected).mean() < 0.01


@pytest.mark.parametrize(("name", "lowest"), [("quanto-int8", 127.0), ("torchao-int8", 127.5)])
@pytest.mark.parametrize("key", [UP, DOWN])
def test_8bit_weights_against_absmax_per_channel(
    source: CheckpointSource, name: str, lowest: float, key: str
) -> None:
    require_library(name)
    weight = own(source, key)
    step = np.abs(weight).max(axis=1, keepdims=True) / np.float32(lowest)
    expected = np.clip(np.round(weight / step), -128, 127) * step
    difference = np.abs(in_force(source, name, key) - expected) / step
    # torchao's largest weight of a channel lies on a half, 127.5 steps, and may go either way.
    largest = np.abs(weight) == np.abs(weight).max(axis=1, keepdims=True)
    assert (difference[~largest] < 1e-3).mean() > 1 - 1e-3
    assert difference.max() < 1.01


# llama.cpp, ggml/src/ggml-quants.c: quantize_row_q*_ref. fp16 scales; halves go up, as roundf and
# the cast of x + 0.5 to an integer do.
def q8_0(x: Floats) -> Floats:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    inverse = np.where(d > 0, 1 / np.where(d > 0, d, 1), 0)
    scaled = x * inverse
    q = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    return np.asarray(q * d.astype(np.float16).astype(np.float32), np.float32)


def q4_0(x: Floats) -> Floats:
    top = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)  # with its sign
    d = top / np.float32(-8)
    inverse = np.where(d != 0, 1 / np.where(d != 0, d, 1), 0)
    q = np.minimum(15, np.floor(x * inverse + np.float32(8.5)))
    return np.asarray((q - 8) * d.astype(np.float16).astype(np.float32), np.float32)


def q_1(x: Floats, bits: int) -> Floats:
    low, high = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    d = (high - low) / np.float32(2**bits - 1)
    inverse = np.where(d > 0, 1 / np.where(d > 0, d, 1), 0)
    q = np.minimum(2**bits - 1, np.floor((x - low) * inverse + np.float32(0.5)))
    half = [part.astype(np.float16).astype(np.float32) for part in (d, low)]
    return np.asarray(q * half[0] + half[1], np.float32)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("gguf-q8_0", q8_0),
        ("gguf-q5_1", lambda x: q_1(x, 5)),
        ("gguf-q4_1", lambda x: q_1(x, 4)),
        ("gguf-q4_0", q4_0),
    ],
)
@pytest.mark.parametrize("key", [UP, DOWN])
def test_gguf_blocks_are_llama_cpps(
    source: CheckpointSource, name: str, formula: Any, key: str
) -> None:
    weight = own(source, key)
    expected = formula(weight.reshape(-1, 32)).reshape(weight.shape)
    found = in_force(source, name, key)
    # Equal but where a weight lies on the edge between two codes.
    off = ~np.isclose(found, expected, rtol=1e-5, atol=1e-7)
    assert off.mean() < 1e-4
    assert np.abs(found - expected).max() <= 2 * np.abs(weight).max() / 8


# ---- HQQ


def hqq_parts(source: CheckpointSource, key: str) -> tuple[Floats, Floats, Floats]:
    """Values (groups, 64), scale and zero (groups, 1), as the library stores them."""
    module = module_of(load(source, "hqq-int4-g64", "native"), key)
    scale, zero = (module.meta[part].float().numpy().reshape(-1, 1) for part in ("scale", "zero"))
    return module.dequantize().float().numpy().reshape(-1, 64), scale, zero


@pytest.mark.parametrize("key", [UP, DOWN])
def test_hqq_values_lie_on_the_grid_of_their_group(source: CheckpointSource, key: str) -> None:
    require_library("hqq-int4-g64")
    values, scale, zero = hqq_parts(source, key)
    codes = values / scale + zero
    np.testing.assert_allclose(codes, np.round(codes), atol=1e-3)
    assert codes.round().min() >= 0
    assert codes.round().max() <= 15


def min_max(groups: Floats) -> Floats:
    """Plain rounding between each group's least and largest weight, in 4 bits: where HQQ starts."""
    low, high = groups.min(axis=1, keepdims=True), groups.max(axis=1, keepdims=True)
    scale = 15 / (high - low)
    zero = -low * scale
    codes = np.clip(np.round(groups * scale + zero), 0, 15)
    return np.asarray((codes - zero) / scale, np.float32)


def test_hqq_is_no_worse_than_plain_rounding_on_heavy_tails() -> None:
    pytest.importorskip("hqq", reason="pip install 'unlearnbench[hqq]'")
    from hqq.core.quantize import Quantizer

    from unlearnbench.conditions.quantize.hqq import _config

    weight = heavy_tailed(64, 256)
    packed, meta = Quantizer.quantize(
        torch.from_numpy(weight),
        device="cpu",
        compute_dtype=torch.float32,
        **_config(SPECS["hqq-int4-g64"])["weight_quant_params"],
    )
    found = Quantizer.dequantize(packed, meta).numpy().reshape(-1, 64)
    exact = weight.reshape(-1, 64)
    plain = min_max(exact)
    lp = [float((np.abs(values - exact) ** 0.7).sum()) for values in (found, plain)]
    assert lp[0] < lp[1]  # what it minimises


# ---- codes without a model


@pytest.mark.parametrize("name", CODED)
@pytest.mark.parametrize("key", [UP, DOWN])
def test_codes_are_those_of_the_loaded_model(source: CheckpointSource, name: str, key: str) -> None:
    require_library(name)
    spec = SPECS[name]
    coded = backends.encode(spec, source.state_dict()[f"{key}.weight"])
    values = in_force_or_int8(source, name, key)
    assert coded.codes.shape == values.shape
    assert not coded.codes.is_floating_point()
    assert_same_partition(coded, values, "fp4" in name)
    assert coded.values.dtype == torch.float32
    np.testing.assert_allclose(coded.values.numpy(), values, rtol=1e-6, atol=1e-9)


def in_force_or_int8(source: CheckpointSource, name: str, key: str) -> Floats:
    if SPECS[name].extra == "compressed-tensors":  # where activations are quantized too, natively
        dense: Floats = module_of(load(source, name), key).weight.detach().numpy()
        return dense
    if name != "bnb-int8":
        return in_force(source, name, key)
    weight = module_of(load(source, name), key).weight
    found: Floats = (weight.data.float() * weight.SCB.float()[:, None] / 127).numpy()
    return found


def assert_same_partition(coded: Codes, values: Floats, fp4: bool) -> None:
    """In any 16 neighbours, which share constants in all schemes, equal codes iff equal values."""
    codes, found = coded.codes.numpy().reshape(-1, 16), values.reshape(-1, 16)
    if fp4:
        codes = np.where(codes == 8, 0, codes)  # minus zero; see the test below
    for row, numbers in zip(codes, found, strict=True):
        pairs = {(int(c), float(v)) for c, v in zip(row, numbers, strict=True)}
        assert len(pairs) == len(np.unique(row)) == len(np.unique(numbers))


@pytest.mark.parametrize("name", ["bnb-fp4", "bnb-fp4-dq"])
def test_fp4_has_one_code_for_zero_whatever_its_sign(source: CheckpointSource, name: str) -> None:
    coded = backends.encode(SPECS[name], source.state_dict()[f"{UP}.weight"])
    zeros = coded.codes.numpy()[in_force(source, name) == 0]
    assert len(zeros) > 30
    assert len(np.unique(zeros)) == 1


@pytest.mark.parametrize("name", CODED)
def test_codes_do_not_depend_on_the_weights_dtype(source: CheckpointSource, name: str) -> None:
    require_library(name)
    weight = source.state_dict()[f"{UP}.weight"].bfloat16()
    one, other = (backends.encode(SPECS[name], w) for w in (weight, weight.float()))
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.values, other.values)


# ---- calibrated: what a layer gives on the texts that it was calibrated on


def outputs(source: CheckpointSource, name: str, keys: list[str]) -> dict[str, Any]:
    """What modules give on the calibration texts."""
    model: Any = load(source, name, "dequantized" if name != "none" else "auto")
    found: dict[str, list[Any]] = {key: [] for key in keys}
    hooks = [
        model.network.get_submodule(key).register_forward_hook(
            lambda _, __, out, key=key: found[key].append(out.detach()[0])
        )
        for key in keys
    ]
    with torch.no_grad():
        for batch in token_batches(source, short_calibration()):
            model.network(**batch)
    for hook in hooks:
        hook.remove()
    return {key: torch.cat(parts).numpy() for key, parts in found.items()}


ATTENTION = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"]


@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_gives_nearer_outputs_than_rounding_on_its_texts(
    source: CheckpointSource, bits: int
) -> None:
    require_library("gptq-int4-g64")
    # Layer 0's projections see the same inputs at every precision: ||X (W' - W)^T||.
    exact = outputs(source, "none", ATTENTION)
    plain = outputs(source, f"rtn-int{bits}-g64", ATTENTION)
    found = outputs(source, f"gptq-int{bits}-g64", ATTENTION)
    for key in ATTENTION:
        assert error(found[key], exact[key]) < error(plain[key], exact[key])


@pytest.mark.slow
@pytest.mark.ci
def test_awq_gives_nearer_outputs_than_rounding_on_its_texts(
    square_source: CheckpointSource,
) -> None:
    # Of the attention and of the MLP: inside, its scales pass from one layer into the next.
    require_library("awq-int4-g64")
    keys = ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp"]
    exact = outputs(square_source, "none", keys)
    plain = outputs(square_source, "rtn-int4-g64-asym", keys)
    found = outputs(square_source, "awq-int4-g64", keys)
    for key in keys:
        assert error(found[key], exact[key]) < error(plain[key], exact[key])
