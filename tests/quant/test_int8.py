"""LLM.int8() on CPU against bitsandbytes' own forward, bit for bit."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import load_at
from tests.models.architectures import PROMPTS
from unlearnbench.models.generation import Continuer
from unlearnbench.models.source import LoadOptions, open_source
from unlearnbench.quant.int8 import quicken, rows_apart
from unlearnbench.requests import Generate

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")  # a line a product on the type of the inputs


def make_layer(bias: bool, dtype: torch.dtype, columns: int = 96) -> Any:
    from bitsandbytes.nn.modules import Int8Params, Linear8bitLt

    generator = torch.Generator().manual_seed(3)
    layer: Any = Linear8bitLt(columns, 40, bias=bias, has_fp16_weights=False, threshold=6.0)
    weight = torch.randn(40, columns, generator=generator)
    layer.weight = Int8Params(weight.half(), requires_grad=False, has_fp16_weights=False)
    if bias:
        layer.bias = torch.nn.Parameter(torch.randn(40, generator=generator).to(dtype))
    return layer.to("cpu").eval()


def make_inputs(shape: tuple[int, ...], outliers: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + outliers)
    inputs = torch.randn(*shape, generator=generator)
    flat = inputs.view(-1)
    flat[torch.randperm(flat.numel(), generator=generator)[:outliers]] *= 40
    return inputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outliers", [0, 5, 200])
@pytest.mark.parametrize("shape", [(1, 1, 96), (1, 30, 96), (4, 7, 96), (9, 96)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_bitsandbytes_own(
    bias: bool, shape: tuple[int, ...], outliers: int, dtype: torch.dtype
) -> None:
    inputs = make_inputs(shape, outliers).to(dtype)
    own, ours = make_layer(bias, dtype), make_layer(bias, dtype)
    with torch.no_grad():
        expected = own(inputs.clone())
        quicken(ours)
        kept = inputs.clone()
        found = ours(inputs)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert torch.equal(inputs, kept), "the inputs stay what they are"


def test_a_layer_that_ran_before_is_its_own_too() -> None:
    layer, inputs = make_layer(True, torch.float32), make_inputs((3, 96), 4)
    with torch.no_grad():
        expected = layer(inputs.clone())
        quicken(layer)
        assert torch.equal(layer(inputs), expected)


def test_rows_move_each_other_only_by_the_outliers_of_the_pass() -> None:
    layer = make_layer(False, torch.float32)
    quicken(layer)
    inputs = make_inputs((6, 96), 0).clamp(-3, 3)
    beside = torch.cat([inputs, torch.full((1, 96), 50.0)])
    with torch.no_grad():
        assert not torch.equal(layer(beside)[:6], layer(inputs))
        with rows_apart(layer):
            assert torch.equal(layer(beside)[:6], layer(inputs))
        assert layer.state.threshold == 6.0


def test_a_model_with_outliers_runs_in_rows_without_padding(tiny: Path) -> None:
    model = load_at(open_source(str(tiny), LoadOptions()), "bnb-int8")
    for name, module in model.network.named_modules():
        if name.endswith("norm"):  # every column of the next layer's inputs has outliers
            module.weight.data *= 30
    requests = [Generate(p, p, 6) for p in PROMPTS[:3]]
    assert len({a.text for a in model.generate(requests)}) > 1
    assert isinstance(model._continuer, Continuer), model._continuer


def test_a_whole_model_gives_bitsandbytes_own_logits(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(40)[None]
    quick = load_at(open_source(str(tiny), LoadOptions()), "bnb-int8").network
    monkeypatch.setattr("unlearnbench.loading.quicken", lambda model: None)
    own = load_at(open_source(str(tiny), LoadOptions()), "bnb-int8").network
    with torch.no_grad():
        assert torch.equal(quick(input_ids=ids).logits, copy.deepcopy(own)(input_ids=ids).logits)
