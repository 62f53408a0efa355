"""``--survive``: terms at the weights that an evaluation will meet; whom their gradient moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.test_main import call
from tests.conftest import load_at, make_model
from tests.training.helpers import go, same, weights
from tests.training.test_steps import batches, rounded
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.origin import FILE, read_origin
from unlearnbench.errors import OptionError, TrainingError
from unlearnbench.methods import find_method
from unlearnbench.methods.base import inner_linears
from unlearnbench.training import steps
from unlearnbench.training.checks import checked
from unlearnbench.training.job import Job, finetune
from unlearnbench.training.options import TrainOptions
from unlearnbench.training.rounded import Survive, survival, through
from unlearnbench.training.steps import WholeStep
from unlearnbench.training.trainer import Combined, Reference

Grads = dict[str, torch.Tensor]


def grid(weight: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    step = np.abs(weight).max(axis=1, keepdims=True) / 7
    result: np.ndarray[Any, np.dtype[np.float64]] = np.round(weight / step) * step
    return result


def test_a_layer_computes_with_the_rounded_weight_and_its_gradient_goes_to_its_own() -> None:
    """By hand: y = x Q(W)' + b, so the loss sum(c y) has the gradient c' x for W, whatever W is."""
    generator = np.random.default_rng(3)
    weight, bias, x, c = (generator.normal(size=s) for s in ((6, 5), 6, (4, 5), (4, 6)))
    layer = torch.nn.Linear(5, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    model, given = torch.nn.Sequential(layer), torch.from_numpy(x).requires_grad_()
    with through(model, rounded):
        y = model(given)
        (torch.from_numpy(c) * y).sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), x @ grid(weight).T + bias, rtol=1e-12)
    assert layer.weight.grad is not None
    assert given.grad is not None
    np.testing.assert_allclose(layer.weight.grad.numpy(), c.T @ x, rtol=1e-12)
    np.testing.assert_allclose(given.grad.numpy(), c @ grid(weight), rtol=1e-12)
    np.testing.assert_array_equal(layer.weight.detach().numpy(), weight)
    np.testing.assert_allclose(model(given).detach().numpy(), x @ weight.T + bias, rtol=1e-12)


def gradient(survive: Survive, method: str = "ga_gdr", size: int = 4) -> tuple[Grads, float]:
    model: Any = make_model(40).double().train()
    step = WholeStep(model, Combined(find_method(method)), batches(size), 1, {}, survive)
    both = step.forget() + step.retain()
    return both.of, sum(both.terms.values())


@pytest.mark.parametrize("size", [1, 4])
def test_the_gradient_is_that_of_both_models_together(size: int) -> None:
    """Of a copy whose weights are rounded, by plain autograd, in double precision."""
    found, total = gradient(Survive([rounded], 0.7), size=size)
    expected: Grads = {}
    value = 0.0
    for factor, is_rounded in ((1.0, False), (0.7, True)):
        model: Any = make_model(40).double().train()
        with torch.no_grad():
            for layer in inner_linears(model).values() if is_rounded else ():
                layer.weight.copy_(rounded(layer.weight))
        loss = factor * Combined(find_method("ga_gdr"))(model, batches(4)[0])["loss"]
        loss.backward()
        value += loss.item()
        for name, parameter in model.named_parameters():
            expected[name] = expected.get(name, torch.zeros_like(parameter)) + parameter.grad
    assert total == pytest.approx(value, rel=1e-12)
    for name, value_ in expected.items():
        assert torch.allclose(found[name], value_, rtol=0, atol=1e-12), name


def test_a_rounding_that_changes_nothing_doubles_the_loss() -> None:
    plain, once = gradient(Survive(()))
    found, total = gradient(Survive([lambda weight: weight]))
    assert total == 2 * once
    for name, value in plain.items():
        assert torch.equal(found[name], 2 * value), name
    two = Survive([lambda weight: weight, lambda weight: weight], 0.5)
    assert gradient(two)[1] == pytest.approx(2 * once, rel=1e-12)


def terms_at(place: bool) -> tuple[dict[str, float], Grads, Grads]:
    """Of a copy, rounded where ``place`` says so, by plain autograd: the terms, and the gradient
    of the forget term and of the others.
    """
    model: Any = make_model(40).double().train()
    with torch.no_grad():
        for layer in inner_linears(model).values() if place else ():
            layer.weight.copy_(rounded(layer.weight))
    found = Combined(find_method("ga_gdr"))(model, batches(4)[0])
    named = dict(model.named_parameters())
    forget, others = (
        dict(
            zip(
                named,
                torch.autograd.grad(found[n], [*named.values()], retain_graph=True),
                strict=True,
            )
        )
        for n in ("forget", "retain")
    )
    return {n: t.item() for n, t in found.items()}, forget, others


@pytest.mark.parametrize("size", [1, 4])
def test_the_worst_place_alone_forgets_and_all_retain(size: int) -> None:
    found, total = gradient(Survive([rounded], 0.7, worst=True), size=size)
    (plain, at_plain, kept_plain), (low, at_low, kept_low) = terms_at(False), terms_at(True)
    assert plain["forget"] != low["forget"]
    if size == 4:  # of one batch, so that one place is the worst of all
        value, at = max((plain["forget"], at_plain), (low["forget"], at_low), key=lambda p: p[0])
        assert total == pytest.approx(value + plain["retain"] + 0.7 * low["retain"], rel=1e-12)
        for name, of in found.items():
            wanted = at[name] + kept_plain[name] + 0.7 * kept_low[name]
            assert torch.allclose(of, wanted, rtol=0, atol=1e-6), name  # norms are in fp32
    else:  # row by row each has its own, so that their sum is at least the larger one
        most = max(plain["forget"], low["forget"])
        assert total >= most + plain["retain"] + 0.7 * low["retain"] - 1e-12


def test_without_a_factor_the_worst_is_the_method_itself() -> None:
    plain, once = gradient(Survive(()))
    found, total = gradient(Survive([rounded], 0.0, worst=True))
    assert total == once
    assert all(torch.equal(found[name], of) for name, of in plain.items())


def test_the_trainer_takes_the_worst_place_too(job: Job, tmp_path: Path) -> None:
    def first(name: str, **options: Any) -> Any:
        return go(job, tmp_path / name, "ga_gdr", max_steps=1, **options).losses[0]

    plain, both = first("plain"), first("both", survive="rtn-int4")
    worst = first("worst", survive="rtn-int4", survive_forget="worst")
    rounded_forget = both.forget - plain.forget
    assert worst.forget == pytest.approx(max(plain.forget, rounded_forget), rel=1e-5)
    assert worst.retain == pytest.approx(both.retain, rel=1e-6)


# What is offered where weights alone decide, one of each kind; GPTQ, say, needs texts.
NAMES = ("rtn-int4", "rtn-int4-g32-asym", "bnb-nf4", "bnb-fp4-dq", "gguf-q4_0")


@pytest.mark.parametrize("name", NAMES)
def test_the_rounded_weights_are_those_that_an_evaluation_meets(tiny: Path, name: str) -> None:
    source = open_checkpoint(str(tiny), LoadOptions())
    kernel = "auto" if name.startswith(("rtn", "gguf")) else "dequantized"
    there: Any = load_at(source, name, kernel=kernel).network
    model: Any = open_checkpoint(str(tiny), LoadOptions()).model()
    before = bits_of(model)
    ids = torch.tensor([[0, 5, 9, 20, 7]])
    _, place = survival(TrainOptions(survive=name)).places(model)
    with torch.no_grad(), place.block:
        ours = model(ids).logits
    assert torch.equal(ours, there(ids).logits)
    assert not torch.equal(ours, model(ids).logits)
    assert all(map(torch.equal, before, bits_of(model)))


def bits_of(model: Any) -> list[torch.Tensor]:
    return [p.detach().clone().view(torch.int32) for p in model.parameters()]


def adapted() -> Any:
    import peft

    config = peft.LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model: Any = peft.get_peft_model(make_model(40), config).double().train()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    return model


def test_an_adapter_is_rounded_together_with_its_weight() -> None:
    """Q(W + s B A): with G the gradient at that weight, A's is s B' G and B's is s G A'."""
    model = adapted()
    step = WholeStep(model, Combined(find_method("ga")), batches(4), 1, {})
    with step.through(rounded):
        found = step.forget().of
    merged = adapted().merge_and_unload()
    with torch.no_grad():
        for layer in inner_linears(merged).values():
            layer.weight.copy_(rounded(layer.weight))
            layer.weight.requires_grad_()
    Combined(find_method("ga"))(merged, batches(4)[0].only("forget"))["loss"].backward()
    layers = dict(inner_linears(merged))
    assert len(found) == 2 * len(layers) == 28
    for name, layer in layers.items():
        lora = model.get_submodule(f"base_model.model.{name}")
        g, scale = layer.weight.grad, lora.scaling["default"]
        for part, expected in (
            ("lora_A", scale * lora.lora_B["default"].weight.T @ g),
            ("lora_B", scale * g @ lora.lora_A["default"].weight.T),
        ):
            key = f"base_model.model.{name}.{part}.default.weight"
            assert torch.allclose(found[key], expected, rtol=0, atol=1e-12), key


def test_a_frozen_reference_is_never_rounded() -> None:
    model = adapted()
    inputs = batches(4)[0].inputs_of("retain")
    apart = make_model(40).double().eval()(**inputs).logits
    with through(model, rounded):
        assert torch.equal(Reference()(model, inputs).logits, apart)


def test_what_is_rounded_already_is_not_rounded_again() -> None:
    model = make_model(40)
    with through(model, rounded), pytest.raises(OptionError, match="rounded already"):  # noqa: SIM117
        with through(model, rounded):
            pass
    assert all("forward" not in vars(layer) for layer in inner_linears(model).values())


@pytest.fixture
def caught(monkeypatch: pytest.MonkeyPatch) -> list[Grads]:
    """The gradient of each step as the Trainer has it."""
    found: list[Grads] = []

    def keep(self: Any, args: Any, state: Any, control: Any, **given: Any) -> None:
        parameters = given["model"].named_parameters()
        found.append({n: p.grad.clone() for n, p in parameters if p.grad is not None})

    monkeypatch.setattr(steps.RequireFinite, "on_pre_optimizer_step", keep)
    return found


@pytest.mark.parametrize("more", [{}, {"micro_batch_size": 1}, {"gradient_checkpointing": True}])
def test_a_step_is_that_of_the_target_and_of_the_rounded_target(
    job: Job, tiny: Path, tmp_path: Path, caught: list[Grads], more: dict[str, Any]
) -> None:
    """The rounded one as a checkpoint of its own."""
    half = tmp_path / "rounded"
    half.mkdir()
    for file in tiny.iterdir():
        (half / file.name).write_bytes(file.read_bytes())
    state = weights(tiny)
    changed = {n: rounded(t) if "proj" in n else t for n, t in state.items()}
    save_file(changed, half / "model.safetensors", {"format": "pt"})
    options = {"max_steps": 1, "max_grad_norm": 0.0}
    both = go(job, tmp_path / "both", "ga_gdr", survive="int4", **options, **more)
    plain = go(job, tmp_path / "plain", "ga_gdr", **options)
    other = go(replace(job, model=str(half)), tmp_path / "other", "ga_gdr", **options)
    for term in ("loss", "forget", "retain"):
        total = getattr(plain.losses[0], term) + getattr(other.losses[0], term)
        # The loss is a small difference of large terms: four last bits of theirs may be in it.
        terms = [getattr(r.losses[0], t) for r in (plain, other) for t in ("forget", "retain")]
        bits = 4 * 2**-24 * sum(map(abs, terms))
        assert getattr(both.losses[0], term) == pytest.approx(total, rel=1e-5, abs=bits), term
    for name, value in caught[0].items():
        total = caught[1][name] + caught[2][name]
        assert torch.allclose(value, total, rtol=1e-3, atol=1e-6), name


@pytest.mark.parametrize("method", ["npo_klr_lora", "rmu", "whp_ft", "ga_gdr_sure"])
def test_every_method_that_trains_its_output_can_be_asked_to_survive(
    job: Job, tiny: Path, tmp_path: Path, method: str
) -> None:
    plain = go(job, tmp_path / "plain", method)
    found = go(job, tmp_path / "out", method, survive="rtn-int4,nf4", survive_weight=0.5)
    assert len(found.losses) == len(plain.losses)
    own = [r for r in found.losses if r.stage == found_stage(method)]
    assert own[0].loss != pytest.approx(plain.losses[-len(own)].loss, rel=1e-4)
    assert found.losses[0].stage != "reinforce" or found.losses[0] == plain.losses[0]
    assert found.recipe != plain.recipe
    origin = read_origin(tmp_path / "out" / FILE)
    assert (origin["survive"], origin["survive_weight"]) == ("rtn-int4,bnb-nf4", "0.5")
    before, after = weights(tiny), weights(tmp_path / "out")
    assert not same(before, after)
    if method == "ga_gdr_sure":
        masks = load_file(tmp_path / "out/masks/sure_mask.safetensors")
        for name, tensor in before.items():
            held = ~masks[name] if name in masks else torch.ones(len(tensor), dtype=torch.bool)
            assert torch.equal(after[name][held], tensor[held]), name


def found_stage(method: str) -> str | None:
    return find_method(method).stage


def test_without_weight_it_is_the_method_itself_bit_for_bit(job: Job, tmp_path: Path) -> None:
    plain = go(job, tmp_path / "plain", "ga_gdr")
    found = go(job, tmp_path / "none", "ga_gdr", survive="int4", survive_weight=0.0)
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "none"))
    assert [r.loss for r in found.losses] == [r.loss for r in plain.losses]
    assert "survive" not in read_origin(tmp_path / "plain" / FILE)


@pytest.mark.slow
@pytest.mark.ci
def test_a_model_learns_so_that_it_survives(job: Job, tmp_path: Path) -> None:
    """Quantized, it knows its texts better than one that was trained as usual."""
    losses = {}
    for name, survive in (("plain", None), ("rounded", "rtn-int3")):
        options = job.options.model_copy(update={"max_steps": 30, "survive": survive})
        finetune(replace(job, out=tmp_path / name, retain=(), options=options))
        source = open_checkpoint(str(tmp_path / name), LoadOptions())
        network: Any = load_at(source, "rtn-int3").network
        text = Path(job.forget[0]).read_text(encoding="utf-8")[20:200]
        ids = source.tokenizer(text, return_tensors="pt")["input_ids"]
        losses[name] = network(ids, labels=ids).loss.item()
    assert losses["rounded"] < losses["plain"] - 0.1


@pytest.mark.parametrize(
    ("method", "more", "says"),
    [
        ("ga", ["--survive", "int5x"], "unknown condition 'int5x'"),
        ("ga", ["--survive", ","], "no condition was asked for"),
        ("ga", ["--survive", "none"], "--survive none: it does not follow from the weights alone"),
        ("ga", ["--survive", "prune-magnitude-50"], "use precisions that do, as rtn-int4"),
        ("ga", ["--survive", "int4,bnb-int8"], "--survive bnb-int8: it does not follow from"),
        ("ga", ["--survive", "gptq-int4-g128"], "--survive gptq-int4-g128: it does not follow"),
        ("ga", ["--survive-weight", "2"], "--survive-weight is for --survive, which is missing"),
        ("ga", ["--survive", "int4", "--survive-weight", "-1"], "--survive-weight"),
        (
            "ga",
            ["--survive-forget", "worst"],
            "--survive-forget is for --survive, which is missing",
        ),
        (
            "whp_ft",
            ["--survive", "int4", "--survive-forget", "worst"],
            "--survive-forget worst: whp_ft has no forget term",
        ),
        ("tv", ["--survive", "int4"], "--survive: tv does not train the model that it makes"),
        ("whp", ["--survive", "int4"], "--survive: whp does not train the model that it makes"),
    ],
)
def test_bad_input_is_one_line(
    quick: list[str], capsys: pytest.CaptureFixture[str], method: str, more: list[str], says: str
) -> None:
    assert call(*quick, "--method", method, *more) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err


@pytest.mark.parametrize("method", ["kga", "ga_gdr_ilu", "npo_klr_ilu_lora"])
def test_a_loss_that_is_no_sum_over_places_is_refused(method: str) -> None:
    with pytest.raises(OptionError, match=f"--survive adds terms up; {method} goes by the value"):
        checked(TrainOptions(survive="rtn-int4"), find_method(method))
    assert checked(TrainOptions(), find_method(method)).survive is None


def test_a_model_that_a_scheme_does_not_fit_is_refused_and_leaves_its_place_free(
    job: Job, tmp_path: Path, make_checkpoint: Any
) -> None:
    from unlearnbench.errors import NotInForceError

    odd = make_checkpoint("odd", hidden_size=48, num_attention_heads=4)
    with pytest.raises(NotInForceError, match="make no blocks of 32"):
        go(replace(job, model=str(odd)), tmp_path / "out", "ga", survive="gguf-q4_0")
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainingError, match="not finite"):
        go(job, tmp_path / "out", "ga", survive="int4", survive_weight=1e38, lr=1e30)
