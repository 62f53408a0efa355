"""AutoRound: what its library stores, unpacked by hand and by GPTQModel, and what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conditions.helpers import (
    LINEAR,
    UP,
    error,
    load,
    require_library,
    short_calibration,
)
from tests.conftest import MakeCheckpoint
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.load import linear_layers
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.base import ConditionSpec, LoadPlan, Materials, ModelWithProof
from unlearnbench.conditions.quantize import autoround
from unlearnbench.conditions.quantize.autoround import PackedMatrix
from unlearnbench.conditions.quantize.autoround_worker import batches
from unlearnbench.conditions.quantize.calibration import token_batches
from unlearnbench.conditions.quantize.gptqmodel import in_module
from unlearnbench.conditions.quantize.rtn import quantize
from unlearnbench.errors import NotInForceError, PrecisionError

PLAN = LoadPlan(torch.float32, "cpu", "dequantized", Materials(short_calibration()))


def spec(group: int, steps: int = 200) -> ConditionSpec:
    found = find_condition(f"auto-round-int4-g{group}")
    return replace(found, options={**found.options, "iterations": steps})


def by_hand(packed: PackedMatrix, size: int) -> Any:
    """The weight in force, one code after another."""
    codes, zeros = (part.numpy().view(np.uint32) for part in (packed.codes, packed.zeros))
    scales = packed.scales.numpy().astype(np.float32)
    rows, columns = scales.shape[1], 8 * codes.shape[0]
    found = np.zeros((rows, columns), np.float32)
    for i in range(rows):
        for j in range(columns):
            code = (codes[j // 8, i] >> np.uint32(4 * (j % 8))) & np.uint32(15)
            zero = (zeros[j // size, i // 8] >> np.uint32(4 * (i % 8))) & np.uint32(15)
            found[i, j] = scales[j // size, i] * (np.float32(code) - np.float32(zero + 1))
    return found


@pytest.mark.parametrize(("columns", "size"), [(64, 32), (96, 64), (64, 64)])
def test_codes_scales_and_zeros_are_unpacked_as_they_are_stored(columns: int, size: int) -> None:
    draw = np.random.default_rng(0)
    rows, groups = 32, -(-columns // size)

    def words(*shape: int) -> torch.Tensor:
        bits = draw.integers(0, 2**32, shape, dtype=np.uint64).astype(np.uint32)
        return torch.from_numpy(bits.view(np.int32))

    scales = torch.from_numpy(draw.normal(size=(groups, rows)).astype(np.float16))
    packed = PackedMatrix(words(columns // 8, rows), words(groups, rows // 8), scales)
    np.testing.assert_array_equal(packed.values(size).numpy(), by_hand(packed, size))


def test_shorter_texts_are_filled_up_with_their_last_token_and_masked() -> None:
    first, last = batches([[1, 2, 3], [4, 5], [6, 7, 8, 9]], 2)
    assert first["input_ids"].tolist() == [[1, 2, 3, 3], [4, 5, 5, 5]]
    assert first["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert last["input_ids"].tolist() == [[6, 7, 8, 9]]


def test_the_short_name_is_the_librarys_own_group() -> None:
    assert find_condition("auto-round-int4").name == "auto-round-int4-g128"


def test_rows_that_the_library_would_pass_over_are_refused(source: CheckpointSource) -> None:
    layer = source.model().get_submodule(UP)
    weight = layer.weight
    layer.weight = torch.nn.Parameter(torch.zeros(40, 64))
    try:
        with pytest.raises(PrecisionError, match="in multiples of 32, and .*up_proj has 40 x 64"):
            autoround.load(spec(64), source, PLAN)
    finally:
        layer.weight = weight


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys; sys.exit('ValueError: no such block\\n')", "this model: ValueError: no such"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("raise SystemExit(3)", "it said nothing"),
    ],
)
def test_a_process_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    (tmp_path / "failing.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(autoround, "_WORKER", "failing")
    with pytest.raises(PrecisionError, match=said) as raised:
        autoround._run(spec(64), tmp_path)
    assert "\n" not in str(raised.value)


def test_a_folder_of_other_bits_or_none_is_not_what_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(NotInForceError, match="saved no model"):
        autoround._read(spec(64), tmp_path)
    config = {"quantization_config": {"bits": 2, "group_size": 64, "sym": True}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(NotInForceError, match="AutoRound saved .*'bits': 2"):
        autoround._read(spec(64), tmp_path)


@pytest.mark.parametrize(
    "said", [{"desc_act": True}, {"dynamic": {"-:head": {}}}, {"extra_config": {"up": {"bits": 8}}}]
)
def test_columns_in_another_order_and_layers_of_their_own_bits_are_refused(
    tmp_path: Path, said: dict[str, Any]
) -> None:
    config = {"bits": 4, "group_size": 64, "sym": True, **said}
    text = json.dumps({"quantization_config": config})
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(NotInForceError, match=f"AutoRound saved .*{next(iter(said))}"):
        autoround._read(spec(64), tmp_path)


WHOLE = {
    "qweight": torch.ones(12, 32, dtype=torch.int32),
    "qzeros": torch.ones(2, 4, dtype=torch.int32),
    "scales": torch.ones(2, 32, dtype=torch.float16),
    "g_idx": torch.arange(96, dtype=torch.int32) // 64,
}


@pytest.mark.parametrize(
    ("part", "found", "said"),
    [
        ("scales", None, r"scales of AutoRound's up is missing, not \('float16', \(2, 32\)\)"),
        ("qzeros", None, "qzeros of AutoRound's up is missing"),
        ("scales", WHOLE["scales"][:1], r"is \('float16', \(1, 32\)\), not "),
        ("scales", WHOLE["scales"].float(), r"is \('float32', \(2, 32\)\), not "),
        ("qzeros", WHOLE["qzeros"][:, :3], r"is \('int32', \(2, 3\)\), not "),
        ("qweight", WHOLE["qweight"].long(), r"is \('int64', \(12, 32\)\), not "),
        ("qweight", torch.tensor(1, dtype=torch.int32), r"is \('int32', \(\)\), not "),
        ("g_idx", WHOLE["g_idx"].flip(0), "up has its columns in another order"),
        ("g_idx", WHOLE["g_idx"][:-1], "up has its columns in another order"),
    ],
)
def test_parts_that_do_not_go_together_are_one_line(
    tmp_path: Path, part: str, found: torch.Tensor | None, said: str
) -> None:
    config = {"quantization_config": {"bits": 4, "group_size": 64, "sym": True, "desc_act": False}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({f"up.{n}": t for n, t in WHOLE.items()}, tmp_path / "model.safetensors")
    assert autoround._read(spec(64), tmp_path)["up"].values(64).shape == (32, 96)
    parts = {f"up.{n}": t for n, t in (WHOLE | {part: found}).items() if t is not None}
    kept = {n: t.contiguous().clone() for n, t in parts.items()}
    save_file(kept, tmp_path / "model.safetensors")
    with pytest.raises(NotInForceError, match=said) as raised:
        autoround._read(spec(64), tmp_path)
    assert "\n" not in str(raised.value)


def plain(weight: torch.Tensor, size: int) -> PackedMatrix:
    """Rounded to the nearest of the levels -8 to 7, of which the largest weight gets -8."""
    exact = weight.detach().float().numpy()
    rows, columns = exact.shape
    scales = np.zeros((-(-columns // size), rows), np.float16)
    codes = np.zeros((columns // 8, rows), np.uint32)
    for i in range(rows):
        for j in range(columns):
            group = exact[i, j // size * size :][:size]
            step = np.float16(group[np.abs(group).argmax()] / -8)
            scales[j // size, i] = step
            code = int(np.clip(np.round(exact[i, j] / np.float32(step)), -8, 7)) + 8
            codes[j // 8, i] |= np.uint32(code << 4 * (j % 8))
    zeros = np.full((len(scales), rows // 8), 0x77777777, np.int32)
    return PackedMatrix(*map(torch.from_numpy, (codes.view(np.int32), zeros, scales)))


def test_roundings_that_the_library_left_plain_are_an_error(
    source: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = {n: plain(layer.weight, 64) for n, layer in linear_layers(source.model()).items()}
    monkeypatch.setattr(autoround, "quantize", lambda *_: packed)
    with pytest.raises(NotInForceError, match="AutoRound learned nothing") as raised:
        autoround.load(spec(64), source, PLAN)
    assert "\n" not in str(raised.value)
    own, moved = packed[UP], PackedMatrix(*(part.clone() for part in packed[UP]))
    moved.codes[0, 0] ^= 1
    moved.scales[0, 0] *= 0.995
    for changed in (own._replace(codes=moved.codes), own._replace(scales=moved.scales)):
        packed[UP] = changed
        assert autoround.load(spec(64), source, PLAN).proof.compared_modules


@pytest.mark.parametrize(
    ("dtype", "device", "times"),
    [("float32", "cpu", 2), ("bfloat16", "cpu", 3), ("bfloat16", "cuda", 2)],
)
def test_memory_is_that_of_the_model_here_and_in_the_librarys_process(
    make_checkpoint: MakeCheckpoint,
    monkeypatch: pytest.MonkeyPatch,
    dtype: str,
    device: str,
    times: int,
) -> None:
    folder = make_checkpoint(f"memory-{dtype}", dtype)
    asked: list[int] = []
    monkeypatch.setattr(autoround, "require_memory", lambda size, _: asked.append(size))
    source = open_checkpoint(str(folder), LoadOptions())
    autoround._require_fit(spec(64), source, device)
    assert asked == [times * sum(t.nbytes for t in source.state_dict().values())]


def test_a_matrix_that_was_left_is_an_error(
    source: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoround, "quantize", lambda *_: {})
    with pytest.raises(NotInForceError, match=r"AutoRound left model\.layers.* as it was"):
        autoround.load(spec(64), source, PLAN)


# ---- by the library: one process, half a minute of one core


@pytest.fixture(scope="module")
def folder(square_source: CheckpointSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What it stores of the square model, in few steps."""
    require_library("auto-round-int4-g64")
    kept = tmp_path_factory.mktemp("autoround") / "kept"

    def keep(_: ConditionSpec, folder: Path) -> dict[str, PackedMatrix]:
        shutil.copytree(next(folder.rglob("config.json")).parent, kept)
        return {}

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(autoround, "_read", keep)
        autoround.quantize(spec(64, 20), square_source, PLAN)
    return kept


@pytest.fixture(scope="module")
def packed(folder: Path) -> dict[str, PackedMatrix]:
    return autoround._read(spec(64, 20), folder)


@pytest.fixture(scope="module")
def made(square_source: CheckpointSource, packed: dict[str, PackedMatrix]) -> ModelWithProof:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(autoround, "quantize", lambda *_: packed)
        return autoround.load(spec(64, 20), square_source, PLAN)


slow = [pytest.mark.slow, pytest.mark.ci]


class TestByTheLibrary:
    pytestmark = slow

    def test_every_linear_layer_is_on_its_grid(
        self, square_source: CheckpointSource, packed: dict[str, PackedMatrix], made: ModelWithProof
    ) -> None:
        assert {name.rpartition(".")[2] for name in packed} == set(LINEAR)
        for name, part in packed.items():
            weight = made.model.get_parameter(f"{name}.weight").detach().numpy()
            np.testing.assert_array_equal(weight, by_hand(part, 64))
            groups = weight.reshape(-1, 64)
            steps = np.abs(part.scales.numpy().astype(np.float32).T.reshape(-1, 1))
            levels = groups / steps
            np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
            # Eight levels on one side of 0 and seven on the other; both ends are used.
            assert np.ptp(np.round(levels), axis=1).max() == 15
            exact = square_source.state_dict()[f"{name}.weight"].numpy()
            assert 0.03 < error(weight, exact) < 0.17
        assert made.proof.codes == 16
        assert made.proof.compared_modules == 7

    def test_embedding_head_and_norms_are_the_checkpoints(
        self, square_source: CheckpointSource, made: ModelWithProof
    ) -> None:
        kept = {n: t for n, t in square_source.state_dict().items() if "_proj" not in n}
        assert len(kept) == 5
        assert all(torch.equal(made.model.state_dict()[n], t) for n, t in kept.items())

    def test_gptqmodel_reads_the_same_weights_from_its_folder(
        self, folder: Path, packed: dict[str, PackedMatrix]
    ) -> None:
        pytest.importorskip("gptqmodel")
        model = load(open_checkpoint(str(folder), LoadOptions()), "none").network
        for name, part in packed.items():
            reading = in_module(model.get_submodule(name), 4, 64)
            assert reading is not None
            assert torch.equal(reading.weight, part.values(64).half())  # as it computes

    def test_outputs_are_nearer_than_roundings_on_its_texts(
        self, square_source: CheckpointSource, made: ModelWithProof
    ) -> None:
        def hidden(weights: dict[str, torch.Tensor]) -> Any:
            model = square_source.build(torch.float32, "cpu", state=weights)
            with torch.no_grad():
                found = [
                    model(**batch, output_hidden_states=True).hidden_states[-1][0]
                    for batch in token_batches(square_source, short_calibration())
                ]
            return torch.cat(found).numpy()

        own = square_source.state_dict()
        rounded = {n: quantize(t, 4, 64).values() if "_proj" in n else t for n, t in own.items()}
        exact = hidden(own)
        plain, found = hidden(rounded), hidden(dict(made.model.state_dict()))
        assert error(found, exact) < error(plain, exact)

    def test_the_same_texts_give_the_same_weights(
        self, square_source: CheckpointSource, packed: dict[str, PackedMatrix]
    ) -> None:
        again = autoround.quantize(spec(64, 20), square_source, PLAN)
        assert again.keys() == packed.keys()
        for name, part in again.items():
            assert all(torch.equal(*pair) for pair in zip(part, packed[name], strict=True))

    def test_of_one_step_nothing_is_learned(self, square_source: CheckpointSource) -> None:
        # What it begins with, as where no loss is ever below infinity.
        with pytest.raises(NotInForceError, match="AutoRound learned nothing"):
            autoround.load(spec(64, 1), square_source, PLAN)

    def test_what_the_library_says_is_the_line(self, square_source: CheckpointSource) -> None:
        odd = replace(spec(64), options={**spec(64).options, "iterations": "many"})
        with pytest.raises(PrecisionError, match="AutoRound cannot quantize this model: ") as e:
            autoround.quantize(odd, square_source, PLAN)
        assert "\n" not in str(e.value)
        assert "Error" in str(e.value)
