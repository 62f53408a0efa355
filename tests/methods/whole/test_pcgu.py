"""Plain steps on chosen rows."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import make_model
from tests.training.helpers import go, weights
from unlearnbench.methods.base import inner_linears
from unlearnbench.methods.rows import Example, Part
from unlearnbench.methods.whole import pcgu
from unlearnbench.training.batches import as_batch, collate, sums_of
from unlearnbench.training.job import Job
from unlearnbench.training.steps import WholeStep

ROW = Example((0, 5, 9, 30, 7), (-100, -100, 9, 30, -100))
OTHER = Example(ROW.ids, (-100, -100, 4, 8, -100))


def test_gradients_are_those_of_raw_logits() -> None:
    model: Any = make_model(40).double()
    items: list[Any] = [{"forget": (ROW,), "alternatives": (OTHER,)}] * 2
    batches = [as_batch(collate([(item, sums_of(items))], pad=1)) for item in items]
    step = WholeStep(model, pcgu.truth, batches, 1, {})
    found = {"true": step.forget(), "generic": step.term("alternatives", pcgu.total)}
    logits = model(torch.tensor([ROW.ids])).logits[0]
    for name, example in (("true", ROW), ("generic", OTHER)):
        value = sum(2 * logits[t - 1, example.labels[t]] for t in (2, 3))
        expected = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        for ours, theirs in zip(found[name].of.values(), expected, strict=True):
            assert torch.allclose(ours, theirs, atol=1e-12)
    assert found["true"].terms["forget"] == pytest.approx(2 * logits[[1, 2], [9, 30]].sum().item())


def test_both_gradients_are_taken_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal labels they are equal, in a model with dropout under training."""
    from transformers import GPT2Config, GPT2LMHeadModel

    size: dict[str, Any] = {"vocab_size": 40, "n_embd": 32, "n_layer": 1, "n_head": 2}
    model: Any = GPT2LMHeadModel(GPT2Config(**size, bos_token_id=0, eos_token_id=1)).train()
    items: list[Any] = [{"forget": (ROW,), "alternatives": (ROW,)}]
    batch = as_batch(collate([(items[0], sums_of(items))], pad=1))
    seen: dict[str, Any] = {}
    monkeypatch.setattr(pcgu, "contrasts", lambda context: ())
    monkeypatch.setattr(pcgu, "held", lambda *given: seen.setdefault("both", given[:2]))
    given: Any = SimpleNamespace(model=model, fit=lambda *told, **named: seen.update(named))
    pcgu.train(given, pcgu.PcguOptions())
    seen["gradient"](WholeStep(model, pcgu.truth, [batch], 1, {}))
    generic, true = seen["both"]
    assert all(torch.equal(generic[name], true[name]) for name in true)
    assert model.training


def test_of_a_conv1d_columns_are_outputs() -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(2, 3)  # (3, 2): two outputs
    first = {"w": torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])}
    second = {"w": torch.tensor([[1.0, -1.0], [0.0, 0.0], [5.0, 2.0]])}
    found = pcgu.held(first, second, {"w": layer}, 0.5)["w"]
    assert found.tolist() == [[0.0, -1.0], [0.0, 0.0], [0.0, 2.0]]


def generic(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def other(context: Any) -> tuple[Example, ...]:
        made = []
        for e in context.forget:
            there = Example(e.ids, tuple((y + 7) % 90 + 5 for y in e.labels))
            made.append(Example(e.ids, e.labels, alternatives=(there,)))
        return tuple(made)

    monkeypatch.setattr(pcgu, "contrasts", other)


def test_all_vectors_are_plain_descent_and_of_some_the_others_stay(
    job: Job, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step without clipping is W - lr g, g of the sum of the true tokens' logits."""
    from transformers import AutoModelForCausalLM

    generic(job, monkeypatch)
    plain = {"max_steps": 1, "batch_size": 18, "max_grad_norm": 0.0, "lr": 1e-4}
    whole = {"pcgu_top": 1.0, "pcgu_over": "all"}
    go(job, tmp_path / "all", "pcgu", knobs=whole, **plain)
    after, model = weights(tmp_path / "all"), AutoModelForCausalLM.from_pretrained(tiny)
    value = torch.zeros(())
    for e in encoded(job, model, monkeypatch, tmp_path):
        logits = model(torch.tensor([e.ids])).logits[0, :-1]
        value = value + logits.gather(1, torch.tensor(e.ids[1:])[:, None]).sum()
    value.backward()
    for name, parameter in copy.deepcopy(model).named_parameters():
        slope: Any = model.get_parameter(name).grad
        assert torch.allclose(after[name], parameter - 1e-4 * slope, atol=1e-5), name
    go(job, tmp_path / "some", "pcgu", knobs={"pcgu_top": 0.05}, **plain)
    before, after = weights(tiny), weights(tmp_path / "some")
    linear = {f"{name}.weight" for name in inner_linears(model)}
    rows = sum(len(before[name]) for name in linear)
    moved = {n: (before[n] != after[n]).reshape(len(before[n]), -1).any(dim=1) for n in before}
    assert all(not moved[name].any() for name in before if name not in linear)
    assert 0 < sum(int(m.sum()) for m in moved.values()) <= -(-rows // 20)


def encoded(job: Job, model: Any, patch: pytest.MonkeyPatch, home: Path) -> tuple[Example, ...]:
    """The forget set as a training sees it."""
    seen: list[Any] = []
    inner: Any = vars(pcgu)["contrasts"]

    def keep(context: Any) -> Any:
        seen.append(context.forget)
        return inner(context)

    with patch.context() as inside:
        inside.setattr(pcgu, "contrasts", keep)
        go(job, home / "seen", "pcgu", max_steps=1)
    found: tuple[Example, ...] = seen[0]
    return found


def test_from_files_to_a_checkpoint_with_generic_words(job: Job, tmp_path: Path) -> None:
    found = go(job, tmp_path / "out", "pcgu", max_steps=2)
    assert [record.stage for record in found.losses] == ["reinforce"] * 2 + ["unlearn"] * 2
    masked = go(job, tmp_path / "masked", "ga_gdr_contrast", max_steps=2)
    assert masked.mask is not None
    assert masked.mask.chosen_rows == pytest.approx(0.086 * masked.mask.rows, abs=1)


def test_part_of_no_token_sums_to_0() -> None:
    labels = torch.full((1, 3), -100)
    assert pcgu.total(Part(torch.zeros(1, 3, 5), labels, 1, 0)).item() == 0.0
