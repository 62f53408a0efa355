"""One optimizer step in a method's hands: gradients at moved weights, weights put back, state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import make_model
from unlearnbench.methods import find_method
from unlearnbench.methods.base import Gradient, inner_linears
from unlearnbench.methods.rows import Batch, Example
from unlearnbench.training.batches import Rows, as_batch, collate, sums_of
from unlearnbench.training.sharding import mask_gradients
from unlearnbench.training.steps import Noise, WholeStep
from unlearnbench.training.trainer import Combined

ROWS: list[Rows] = [
    {"forget": (Example((0, 5, 9, n), (0, 5, 9, n)),), "retain": (Example((0, n, 4), (0, n, 4)),)}
    for n in range(20, 24)
]


def batches(size: int) -> list[Batch]:
    whole = sums_of(ROWS)
    return [
        as_batch(collate([(row, whole) for row in ROWS[at : at + size]], pad=1))
        for at in range(0, len(ROWS), size)
    ]


def whole_step(size: int = 4, method: str = "ga_gdr", **more: Any) -> tuple[Any, WholeStep]:
    model: Any = make_model(40, **more).double().train()
    return model, WholeStep(model, Combined(find_method(method)), batches(size), 1, {})


def norm(gradient: Gradient) -> float:
    return float(torch.stack([g.norm() for g in gradient.of.values()]).norm())


def bits(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone().view(torch.int64) for p in model.parameters()]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_gradients_are_those_of_the_whole_step_however_it_is_accumulated(size: int) -> None:
    model, step = whole_step(size)
    (batch,) = batches(4)
    terms = Combined(find_method("ga_gdr"))(model, batch)
    terms["loss"].backward()
    both = step.forget() + step.retain()
    assert both.terms["forget"] == pytest.approx(terms["forget"].item(), rel=1e-12)
    assert both.terms["retain"] == pytest.approx(terms["retain"].item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        assert torch.allclose(both.of[name], parameter.grad, rtol=0, atol=1e-12), name
        parameter.grad = None
    step.forget()
    assert all(p.grad is None for p in model.parameters()), "a gradient that is only tried"


def test_weights_moved_inside_a_block_are_bit_for_bit_back_after_it() -> None:
    """Also after a failure, and where adding and subtracting again would not restore them."""
    model, step = whole_step()
    before = bits(model)
    first = step.forget()
    with torch.no_grad(), step.restored():
        for name, weight in step.weights.items():
            weight += 1e9 * first.of[name] / norm(first)
    assert all(map(torch.equal, before, bits(model)))

    def fail() -> None:
        with torch.no_grad(), step.restored():
            next(iter(step.weights.values())).fill_(0.0)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert all(map(torch.equal, before, bits(model)))


@pytest.mark.parametrize("size", [1, 4])
def test_the_gradient_at_the_worst_place_nearby_is_sams(size: int) -> None:
    """ArXiv 2502.05374: the forget gradient at th + rho g / |g|, held against one worked out by
    hand on a copy of the model.
    """
    _, step = whole_step(size)
    first = step.forget()
    with torch.no_grad(), step.restored():
        for name, weight in step.weights.items():
            weight += 0.01 * first.of[name] / norm(first)
        found = step.forget()
    moved: Any = make_model(40).double().train()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += 0.01 * first.of[name] / norm(first)
    (batch,) = batches(4)
    Combined(find_method("ga"))(moved, batch.only("forget"))["loss"].backward()
    for name, parameter in moved.named_parameters():
        assert torch.allclose(found.of[name], parameter.grad, rtol=0, atol=1e-12), name
    assert any(not torch.allclose(found.of[n], g) for n, g in first.of.items()), "it is not plain"


def rounded(weight: torch.Tensor) -> torch.Tensor:
    step = weight.abs().amax(dim=1, keepdim=True) / 7
    return (weight / step).round() * step


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_through_rounded_weights_is_that_of_the_rounded_model(
    checkpointing: bool,
) -> None:
    model, step = whole_step()
    if checkpointing:  # whose second forward pass has to meet the same weights
        model.activation_checkpointing_enable({"use_reentrant": False})
    before = bits(model)
    with step.through(rounded):
        found = step.forget()
    assert all(map(torch.equal, before, bits(model))), "the weights themselves stay"
    other: Any = make_model(40).double().train()
    with torch.no_grad():
        for layer in inner_linears(other).values():
            layer.weight.copy_(rounded(layer.weight))
    (batch,) = batches(4)
    terms = Combined(find_method("ga"))(other, batch.only("forget"))
    terms["loss"].backward()
    assert found.terms["forget"] == pytest.approx(terms["loss"].item(), rel=1e-12)
    for name, parameter in other.named_parameters():
        assert torch.allclose(found.of[name], parameter.grad, rtol=0, atol=1e-12), name
    assert torch.equal(step.forget().of["lm_head.weight"], plain_head(model)), "only in the block"


def gpt2() -> Any:
    """Its Conv1D hold their weights as (in, out)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    size: dict[str, Any] = {
        "vocab_size": 40,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
    }
    return GPT2LMHeadModel(GPT2Config(**size)).double().eval()


def turned(model: Any) -> dict[str, Any]:
    return {n: m for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}


def test_a_conv1d_is_rounded_by_its_outputs_which_are_columns() -> None:
    model, other = gpt2(), gpt2()
    step = WholeStep(model, Combined(find_method("ga")), batches(4), 1, {})
    with step.through(rounded):
        found = step.forget()
    assert list(inner_linears(model)) == list(turned(other))
    with torch.no_grad():
        for layer in turned(other).values():
            layer.weight.copy_(rounded(layer.weight.T.contiguous()).T)
    (batch,) = batches(4)
    Combined(find_method("ga"))(other, batch.only("forget"))["loss"].backward()
    for name, parameter in other.named_parameters():
        assert torch.allclose(found.of[name], parameter.grad, rtol=0, atol=1e-12), name


def test_a_conv1ds_noise_is_as_wide_as_its_columns_steps() -> None:
    model, before = gpt2(), gpt2()
    Noise(model, 1.0).on_step_begin(None, None, None)
    for name, layer in turned(before).items():
        weight = layer.weight.detach()
        shares = model.get_submodule(name).weight.detach() - weight
        shares = shares / (weight.abs().amax(dim=0) / 7)
        assert float(shares.abs().max()) <= 0.5
        assert float(shares.std()) == pytest.approx(12**-0.5, abs=0.03)


def test_a_mask_holds_a_conv1ds_columns_still() -> None:
    model = gpt2()
    (batch,) = batches(4)
    Combined(find_method("ga"))(model, batch.only("forget"))["loss"].backward()
    before = {n: layer.weight.grad.clone() for n, layer in turned(model).items()}
    masks = {f"{n}.weight": torch.arange(grad.shape[1]) % 3 == 0 for n, grad in before.items()}
    mask_gradients(model, masks)
    for name, layer in turned(model).items():
        kept = masks[f"{name}.weight"]
        assert torch.equal(layer.weight.grad[:, kept], before[name][:, kept])
        assert not layer.weight.grad[:, ~kept].any()


def plain_head(model: Any) -> torch.Tensor:
    (batch,) = batches(4)
    loss = Combined(find_method("ga"))(model, batch.only("forget"))["loss"]
    (found,) = torch.autograd.grad(loss, [model.lm_head.weight])
    return found


def test_terms_on_other_texts_may_be_none() -> None:
    _, step = whole_step(method="ga")
    other = WholeStep(
        step.model, Combined(find_method("ga")), [step.batches[0].only("forget")], 1, {}
    )
    found = other.retain()
    assert found.terms == {}
    assert norm(found) == 0.0


def test_gradients_add_up_and_scale_with_their_terms() -> None:
    _, step = whole_step()
    forget, retain = step.forget(), step.retain()
    both = forget * 2.0 + retain
    assert both.terms == {"forget": 2 * forget.terms["forget"], "retain": retain.terms["retain"]}
    name = "model.norm.weight"
    assert torch.equal(both.of[name], 2 * forget.of[name] + retain.of[name])
