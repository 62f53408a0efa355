"""LLM.int8() on CPU against bitsandbytes' own forward, bit for bit."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CORPUS, load_at, make_tokenizer
from tests.models.architectures import PROMPTS, alone
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.models.generation import Continuer
from unlearnbench.models.hf import HFModel
from unlearnbench.models.packable import int8_modules, quicken_int8, unrounded
from unlearnbench.requests import Generate, Score

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


@contextmanager
def rows_apart(model: torch.nn.Module) -> Iterator[None]:
    """Meanwhile no column is computed in 16 bits, so that rows do not move each other."""
    modules = int8_modules(model)
    before = [module.state.threshold for module in modules]
    for module in modules:
        module.state.threshold = 0.0
    yield
    for module, threshold in zip(modules, before, strict=True):
        module.state.threshold = threshold


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
        quicken_int8(ours)
        kept = inputs.clone()
        found = ours(inputs)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)
    assert torch.equal(inputs, kept), "the inputs stay what they are"


def test_a_layer_that_ran_before_is_its_own_too() -> None:
    layer, inputs = make_layer(True, torch.float32), make_inputs((3, 96), 4)
    with torch.no_grad():
        expected = layer(inputs.clone())
        quicken_int8(layer)
        assert torch.equal(layer(inputs), expected)


def test_rows_move_each_other_only_by_the_outliers_of_the_pass() -> None:
    layer = make_layer(False, torch.float32)
    quicken_int8(layer)
    inputs = make_inputs((6, 96), 0).clamp(-3, 3)
    beside = torch.cat([inputs, torch.full((1, 96), 50.0)])
    with torch.no_grad():
        assert not torch.equal(layer(beside)[:6], layer(inputs))
        with rows_apart(layer):
            assert torch.equal(layer(beside)[:6], layer(inputs))
        assert layer.state.threshold == 6.0


@pytest.fixture
def with_outliers(tiny: Path) -> HFModel:
    model = load_at(open_checkpoint(str(tiny), LoadOptions()), "bnb-int8")
    for name, module in model.network.named_modules():
        if name.endswith("norm"):  # every column of the next layer's inputs has outliers
            module.weight.data *= 30
    return model


def test_a_model_with_outliers_runs_in_rows_without_padding(with_outliers: HFModel) -> None:
    """As transformers' own generate runs them one at a time. Without the outliers' columns on both
    sides: with them a prompt's text depends on the others of its pass, which no rule forbids.
    """
    model, prompts = with_outliers, PROMPTS[:4]
    with rows_apart(model.network):
        found = {a.id: a.text for a in model.generate([Generate(p, p, 12) for p in prompts])}
        assert isinstance(model._continuer, Continuer), model._continuer
        expected = {p: alone(model.network, p, 12) for p in prompts}
    decode = make_tokenizer().decode
    assert found == {p: decode(row, skip_special_tokens=True) for p, row in expected.items()}
    assert len(set(found.values())) == len(prompts)


def test_a_prompt_alone_is_transformers_own_with_its_outliers(with_outliers: HFModel) -> None:
    """One row and no prefix: nothing beside it can choose its columns."""
    model, decode = with_outliers, make_tokenizer().decode
    for prompt in PROMPTS[:2]:
        (answer,) = model.generate([Generate(prompt, prompt, 12)])
        row = alone(model.network, prompt, 12)
        assert answer.text == decode(row, skip_special_tokens=True)


def test_the_score_of_a_text_does_not_depend_on_the_texts_beside_it(
    with_outliers: HFModel,
) -> None:
    texts = [CORPUS[n][: 30 + 17 * n] for n in range(6)]
    together = {a.id: a.logprobs for a in with_outliers.score([Score(t, t) for t in texts])}
    for text in texts:
        ids = torch.tensor([with_outliers.tokens.encode(text)])
        with torch.no_grad():
            logits = with_outliers.network(input_ids=ids).logits[0, :-1]
        expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        np.testing.assert_allclose(together[text], expected, atol=1e-4)


def test_no_product_rounds_while_ways_are_compared(tiny: Path) -> None:
    model = load_at(open_checkpoint(str(tiny), LoadOptions()), "bnb-int8").network
    ids = torch.arange(40)[None]
    expected = copy.deepcopy(model)
    for _, module in [*expected.named_modules()]:
        for name, part in module.named_children():
            if hasattr(part.weight if hasattr(part, "weight") else part, "SCB"):
                dense = torch.nn.Linear(part.in_features, part.out_features, bias=False)
                scale = part.weight.SCB[:, None] / 127
                dense.weight = torch.nn.Parameter(part.weight.data.float() * scale)
                setattr(module, name, dense)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        with unrounded(model):
            found = model(input_ids=ids).logits
        torch.testing.assert_close(found, expected(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found, before, atol=1e-4), "rounding moves it"
        assert torch.equal(model(input_ids=ids).logits, before), "and is back"


def test_a_whole_model_gives_bitsandbytes_own_logits(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(40)[None]
    quick = load_at(open_checkpoint(str(tiny), LoadOptions()), "bnb-int8").network
    monkeypatch.setattr("unlearnbench.models.packable.quicken_int8", lambda model: None)
    own = load_at(open_checkpoint(str(tiny), LoadOptions()), "bnb-int8").network
    with torch.no_grad():
        assert torch.equal(quick(input_ids=ids).logits, copy.deepcopy(own)(input_ids=ids).logits)
