"""What the proof refuses, and what it reports."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.conditions.helpers import LINEAR, UP, in_force, load, module_of, require_library
from unlearnbench import conditions as backends
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.base import ConditionSpec, ModuleReading, groups
from unlearnbench.conditions.proof import _choose, distinct_values, prove
from unlearnbench.conditions.quantize import bnb
from unlearnbench.conditions.quantize.rtn import quantize
from unlearnbench.errors import NotInForceError

INT4 = ConditionSpec("fake-int4", "quantized", "none at all", "test", bits=4)


def rounded(module: nn.Module) -> torch.Tensor:
    weight = module.get_parameter("weight")
    return quantize(weight.detach(), 4).values()


def prove_with(
    source: CheckpointSource,
    make: Callable[[str, nn.Module], ModuleReading | None],
    spec: ConditionSpec = INT4,
) -> Any:
    """The proof of an unquantized model of which ``make`` says what is in each module."""
    model = source.build(torch.float32, "cpu")

    def inspect(name: str, module: nn.Module) -> ModuleReading | None:
        return make(name, module) if name.endswith(LINEAR) else None

    return prove(spec, source, model, inspect)


def seen(weight: torch.Tensor, own: torch.Tensor | None = None) -> ModuleReading:
    return ModuleReading(weight, weight, "int8", weight.numel() // 2, own)


def test_a_right_one_is_proven(source: CheckpointSource) -> None:
    proof = prove_with(source, lambda _, module: seen(rounded(module)))
    assert proof.codes == 15
    assert proof.compared_modules == 14
    assert not proof.on_grid


def test_a_quantizer_that_did_nothing_is_an_error(source: CheckpointSource) -> None:
    with pytest.raises(
        NotInForceError, match="fake-int4: no module of the loaded model is quantized"
    ):
        prove_with(source, lambda *_: None)


def test_one_layer_left_out_is_an_error_that_names_it(source: CheckpointSource) -> None:
    def make(name: str, module: nn.Module) -> ModuleReading | None:
        return None if name == UP else seen(rounded(module))

    with pytest.raises(NotInForceError, match=f"1 of 14 linear modules are not quantized, as {UP}"):
        prove_with(source, make)


def test_more_values_than_the_bits_allow_are_an_error(source: CheckpointSource) -> None:
    def make(name: str, module: nn.Module) -> ModuleReading:
        weight = rounded(module)
        if name == UP:
            weight[3, :17] = torch.linspace(0.01, 0.02, 17)
        return seen(weight)

    with pytest.raises(NotInForceError, match=f"a group of module {UP} holds .* more than 4 bits"):
        prove_with(source, make)


@pytest.mark.parametrize("name", ["bnb-nf4", "rtn-int4", "quanto-int8", "hqq-int4-g64"])
def test_weights_of_another_matrix_are_an_error(
    source: CheckpointSource, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    require_library(name)
    state = source.state_dict()
    other = {k: t.roll(1, 0) if k == f"{UP}.weight" else t for k, t in state.items()}
    model: Any = backends.file_of(backends.find_condition(name))
    build, read = source.build, source.state_dict

    def mixed(*arguments: Any, **options: Any) -> Any:
        return build(*arguments, **({"state": other} | options))

    monkeypatch.setattr(source, "build", mixed)
    calls: list[int] = []

    def swapped() -> dict[str, torch.Tensor]:
        calls.append(1)
        return other if len(calls) == 1 else read()  # the proof reads the true ones

    if name.startswith(("rtn", "hqq")):
        monkeypatch.setattr(source, "state_dict", swapped)
    with pytest.raises(NotInForceError, match=f"module {UP} are not those of the checkpoint"):
        load(source, name)
    assert model is not None


def test_a_matrix_of_the_wrong_size_is_an_error(source: CheckpointSource) -> None:
    with pytest.raises(NotInForceError, match=r"has shape \(8, 64\), and the checkpoint's weight"):
        prove_with(source, lambda _, module: seen(rounded(module)[:8]))


def test_a_module_that_the_checkpoint_lacks_is_an_error(source: CheckpointSource) -> None:
    model = source.build(torch.float32, "cpu")
    model.add_module("extra", nn.Linear(4, 4))
    with pytest.raises(NotInForceError, match="module extra has no weight in the checkpoint"):
        prove(
            INT4,
            source,
            model,
            lambda _, m: seen(rounded(m)) if isinstance(m, nn.Linear) else None,
        )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_an_error(source: CheckpointSource, value: float) -> None:
    def make(name: str, module: nn.Module) -> ModuleReading:
        weight = rounded(module)
        if name == UP:
            weight[0, 0] = value
        return seen(weight)

    with pytest.raises(NotInForceError, match=f"a weight of module {UP} is NaN or infinite"):
        prove_with(source, make)


@pytest.mark.parametrize(("loaded", "asked"), [("bnb-fp4", "bnb-nf4"), ("bnb-nf4", "bnb-nf4-dq")])
def test_another_type_of_bitsandbytes_is_an_error(
    source: CheckpointSource, loaded: str, asked: str
) -> None:
    module = module_of(load(source, loaded, "native"), UP)
    with pytest.raises(NotInForceError, match=f"{asked}: a module holds .*quant_type"):
        bnb.inspect(module, backends.find_condition(asked))


def test_another_number_of_bits_is_not_taken_for_the_one_asked_for(
    source: CheckpointSource,
) -> None:
    eight = module_of(load(source, "bnb-int8"), UP)
    four = module_of(load(source, "bnb-nf4", "native"), UP)
    assert bnb.inspect(eight, backends.find_condition("bnb-nf4")) is None
    assert bnb.inspect(four, backends.find_condition("bnb-int8")) is None


def test_a_4bit_module_that_was_never_packed_is_an_error() -> None:
    from bitsandbytes.nn.modules import Linear4bit

    with pytest.raises(NotInForceError, match="stored as .*float32, not packed"):
        bnb.inspect(Linear4bit(64, 64))  # type: ignore[no-untyped-call]


def test_quanto_of_other_bits_is_an_error(source: CheckpointSource) -> None:
    pytest.importorskip("optimum.quanto", reason="pip install 'unlearnbench[quanto]'")
    from unlearnbench.conditions.quantize import quanto

    module = module_of(load(source, "quanto-int8", "native"), UP)
    with pytest.raises(NotInForceError, match="quanto-int4: a module holds a weight of"):
        quanto._inspect(backends.find_condition("quanto-int4"), module)


def saved(source: CheckpointSource, name: str, folder: Path) -> CheckpointSource:
    """A checkpoint of the weights that are in force at a precision."""
    state = source.state_dict()
    for key in list(state):
        if key.removesuffix(".weight").endswith(LINEAR):
            state[key] = torch.from_numpy(in_force(source, name, key.removesuffix(".weight")))
    model: Any = source.build(torch.float32, "cpu", state=state)
    model.save_pretrained(folder)
    source.tokenizer.save_pretrained(folder)
    return open_checkpoint(str(folder), LoadOptions())


@pytest.mark.parametrize(
    "name", ["rtn-int4", "rtn-int8-g64", "gguf-q4_1", "gguf-q4_0", "bnb-nf4", "quanto-int8"]
)
def test_weights_on_the_grid_are_reported(
    source: CheckpointSource, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    require_library(name)
    proof = load(saved(source, name, tmp_path), name).condition.proof
    assert proof is not None
    assert proof.on_grid
    assert proof.max_relative_error is not None
    assert proof.max_relative_error < 1e-5
    assert f"{name} changed no weight by more than a rounding error" in caplog.text


def test_a_grid_is_not_another_grid(
    source: CheckpointSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    proof = load(saved(source, "rtn-int4", tmp_path), "bnb-nf4").condition.proof
    assert proof is not None
    assert not proof.on_grid
    assert "rounding error" not in caplog.text


def test_the_proof_looks_at_every_kind_of_module() -> None:
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    names = [f"model.layers.{i}.x.{kind}" for i in range(32) for kind in kinds]
    large = {f"{name}.weight": torch.empty(2**22, device="meta") for name in names}
    chosen = _choose(names, large)
    assert len(chosen) < len(names)
    assert {name.rsplit(".", 1)[-1] for name in chosen} == set(kinds)
    assert {"0", "16"} <= {name.split(".")[2] for name in chosen}


def test_a_large_model_is_compared_in_some_modules_and_counted_in_all(
    source: CheckpointSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearnbench.conditions.proof._COMPARE_ALL", 1000)
    monkeypatch.setattr("unlearnbench.conditions.proof._PER_KIND", 1)
    proof = load(source, "rtn-int4").condition.proof
    assert proof is not None
    assert proof.compared_modules == 7
    assert set(proof.covered_modules.values()) == {2}


def test_figures_are_those_of_the_weights(source: CheckpointSource) -> None:
    model = load(source, "rtn-int4")
    proof = model.condition.proof
    assert proof is not None
    errors, noise, signal, changed = {}, 0.0, 0.0, 0
    for key, tensor in source.state_dict().items():
        if not key.removesuffix(".weight").endswith(LINEAR):
            continue
        exact = tensor.double().numpy()
        now = module_of(model, key.removesuffix(".weight")).weight.double().numpy()
        errors[key] = float(np.linalg.norm(now - exact) / np.linalg.norm(exact))
        noise, signal = noise + ((now - exact) ** 2).sum(), signal + (exact**2).sum()
        changed += int((now != exact).sum())
    assert proof.relative_error == pytest.approx((noise / signal) ** 0.5, rel=1e-6)
    assert proof.mean_relative_error == pytest.approx(np.mean(list(errors.values())), rel=1e-6)
    assert proof.max_relative_error == pytest.approx(max(errors.values()), rel=1e-6)
    assert f"{proof.max_error_module}.weight" == max(errors, key=lambda key: errors[key])
    assert proof.changed_share == pytest.approx(changed / proof.covered_weights)


def test_distinct_values_are_counted_in_the_worst_group() -> None:
    rows = torch.tensor([[1.0, 1, 1, 1], [1, 2, 1, 2], [4, 3, 2, 1]])
    assert [distinct_values(rows[:n]) for n in (1, 2, 3)] == [1, 2, 4]
    assert distinct_values(torch.tensor([[0.0, -0.0]])) == 1


@pytest.mark.parametrize("size", [None, 1, 4, 5, 7, 10, 64])
def test_groups_hold_every_value_and_add_none(size: int | None) -> None:
    weight = torch.arange(20.0).reshape(2, 10)
    found = groups(weight, size)
    assert found.shape[0] == 2 * (1 if size is None else -(-10 // size))
    for row, per_row in zip(weight, found.chunk(2), strict=True):
        assert set(per_row.flatten().tolist()) == set(row.tolist())


def test_blocks_run_on_from_row_to_row() -> None:
    weight = torch.arange(10.0).reshape(2, 5)
    assert groups(weight.reshape(1, -1), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]


def test_columns_that_make_no_block_are_an_error(make_checkpoint: Any) -> None:
    odd = open_checkpoint(
        str(make_checkpoint("odd", hidden_size=48, intermediate_size=80)), LoadOptions()
    )
    with pytest.raises(NotInForceError, match="gguf-q4_0: the 48 columns of .* no blocks of 32"):
        load(odd, "gguf-q4_0")
    # Others do without: whole rows, or a shorter last group.
    for name in ("rtn-int4-g64", "rtn-int4-g32-asym", "quanto-int8", "torchao-int8"):
        require_library(name)
        proof = load(odd, name).condition.proof
        assert proof is not None
        assert proof.compared_modules == 14
