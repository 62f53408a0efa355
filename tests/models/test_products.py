from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.conftest import load_at
from tests.models.architectures import PROMPTS, make_kind
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.models import products
from unlearnbench.models.products import quicken_products
from unlearnbench.requests import Generate

SHAPES = [(1, 1), (7, 1), (8, 1), (1, 8), (16, 1), (4, 12), (48, 1), (49, 1), (2, 40)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_of_exact_arithmetic(
    shape: tuple[int, int], bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(96, 40, bias=bias, dtype=dtype).requires_grad_(False)
    inputs = torch.randn(*shape, 96).to(dtype)
    exact = inputs.double() @ layer.weight.double().T
    if bias:
        exact = exact + layer.bias.double()
    own = layer(inputs)
    quicken_products(layer)
    found = layer(inputs)
    assert found.shape == own.shape
    assert found.dtype == dtype
    assert found.is_contiguous()
    error = float((own.double() - exact).abs().max())
    assert float((found.double() - exact).abs().max()) <= 2 * error + 1e-5
    assert (found.double() - exact).abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


def test_a_copy_multiplies_by_its_own_weights() -> None:
    layer = nn.Sequential(nn.Linear(8, 8, bias=False))
    quicken_products(layer)
    other = copy.deepcopy(layer)
    with torch.no_grad():
        next(other.parameters()).zero_()
        inputs = torch.ones(16, 8)
        assert float(other(inputs).abs().max()) == 0
        assert float(layer(inputs).abs().max()) > 0


def test_layers_of_libraries_are_left_alone() -> None:
    class Packed(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return torch.zeros(1)

    class Coded(torch.Tensor):
        pass

    rounding, coded = nn.Linear(16, 16), nn.Linear(16, 16)
    rounding.forward = own = lambda inputs: inputs.round()  # type: ignore[method-assign]
    coded.weight = nn.Parameter(torch.zeros(16, 16).as_subclass(Coded))
    model = nn.ModuleList([Packed(16, 16), rounding, coded, nn.Linear(16, 16)])
    quicken_products(model)
    assert "forward" not in vars(model[0])
    assert vars(model[1])["forward"] is own
    assert "forward" not in vars(model[2])
    assert "forward" in vars(model[3])


def test_without_mkl_nothing_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    model = make_kind("llama")
    quicken_products(model)
    assert not any("forward" in vars(part) for part in model.modules())


def test_a_loaded_model_has_them_and_answers_as_without(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Generate(f"{n}", PROMPTS[n % len(PROMPTS)] * (1 + n // 3), 16) for n in range(12)]
    model = load_at(open_source(str(tiny), LoadOptions()), "none")
    turns: list[int] = []

    def watched(module: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        turns.append(inputs.numel() // inputs.shape[-1])
        return products._forward(module, inputs)

    quick = {name: part for name, part in model.network.named_modules() if "forward" in vars(part)}
    assert any(name.endswith("q_proj") for name in quick)
    for part in quick.values():
        monkeypatch.setattr(part, "forward", lambda inputs, part=part: watched(part, inputs))
    found = [answer.text for answer in model.generate(asked)]
    assert any(8 <= rows <= 48 for rows in turns)
    for part in quick.values():
        del part.forward
    assert [answer.text for answer in model.generate(asked)] == found
