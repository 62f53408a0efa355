"""Unlearning layers and their fusion."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_model
from tests.training.helpers import go, weights
from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import Example
from unlearnbench.methods.whole.eul import EulOptions, Unlearning, fuse, gram, train
from unlearnbench.training.batches import as_batch, collate, sums_of
from unlearnbench.training.job import Job
from unlearnbench.training.trainer import Reference


def keys(rng: Any, columns: int, inside: Any = None) -> Any:
    found = rng.normal(size=(6, columns))
    return found if inside is None else inside @ inside.T @ found


def fused(changes: list[Any], inputs: list[Any], ridge: float = 1e-4) -> Any:
    given = [torch.tensor(d) for d in changes], [torch.tensor(k @ k.T) for k in inputs]
    return fuse(*given, ridge).numpy()


def test_the_fusion_is_the_least_squares_solution() -> None:
    rng = np.random.default_rng(0)
    changes = [rng.normal(size=(4, 6)) for _ in range(3)]
    inputs = [keys(rng, n) for n in (9, 4, 12)]
    found = fused(changes, inputs, ridge=0.1)
    mean = sum(changes) / 3
    mu = 0.1 * np.diag(sum(k @ k.T for k in inputs)).mean()

    def objective(d: Any) -> float:
        far = sum((((d - c) @ k) ** 2).sum() for c, k in zip(changes, inputs, strict=True))
        return float(far + mu * ((d - mean) ** 2).sum())

    for _ in range(50):
        assert objective(found + 1e-3 * rng.normal(size=found.shape)) > objective(found)


def test_one_is_itself_equals_are_that_and_apart_each_is_kept() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    assert fused([first], [keys(rng, 3)]) == pytest.approx(first, abs=1e-12)
    three = [keys(rng, n) for n in (2, 5, 9)]
    assert fused([first] * 3, three) == pytest.approx(first, abs=1e-12)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    apart = [keys(rng, 8, basis[:, :3]), keys(rng, 8, basis[:, 3:])]
    found = fused([first, second], apart, ridge=1e-12)
    assert found @ apart[0] == pytest.approx(first @ apart[0], abs=1e-8)
    assert found @ apart[1] == pytest.approx(second @ apart[1], abs=1e-8)


def test_at_the_target_both_divergences_and_their_gradients_are_0() -> None:
    model: Any = make_model(40).double().eval()
    rows: list[Any] = [
        {"forget": (Example((0, 5, 9), (0, 5, 9)),), "retain": (Example((0, 8), (0, 8)),)}
    ]
    batch = as_batch(collate([(row, sums_of(rows)) for row in rows], pad=1))
    only = EulOptions(eul_task=0.0, eul_ascent=0.0)
    terms = Unlearning(only, Reference(make_model(40).double().eval()))(model, batch)
    assert terms["loss"].item() == pytest.approx(0.0, abs=1e-12)
    slopes = torch.autograd.grad(terms["loss"], list(model.parameters()))
    assert max(float(slope.abs().max()) for slope in slopes) < 1e-12
    found = Unlearning(EulOptions(), Reference(model))(model, batch)
    plain = model(torch.tensor([[0, 5, 9]])).logits[0].log_softmax(-1).detach()
    near = model(torch.tensor([[0, 8]])).logits[0].log_softmax(-1).detach()
    ascent = 0.2 * float(plain[0, 5] + plain[1, 9]) / 2
    assert found["forget"].item() == pytest.approx(ascent, abs=1e-9)
    assert found["retain"].item() == pytest.approx(-float(near[0, 8]), abs=1e-9)


@pytest.mark.parametrize(("texts", "count"), [(5, 4), (6, 5), (7, 3), (4, 4)])
def test_there_are_as_many_requests_as_were_asked_for(texts: int, count: int) -> None:
    model: Any = make_model(40)
    parts: list[tuple[Example, ...]] = []
    rows = tuple(Example((0, n), (0, n)) for n in range(5, 5 + texts))

    def fit(*given: Any, forget: Any, **named: Any) -> Any:
        parts.append(forget)
        return model

    context: Any = SimpleNamespace(model=model, forget=rows, freeze=lambda: None, fit=fit)
    train(context, EulOptions(eul_requests=count))
    assert len(parts) == count
    assert tuple(row for part in parts for row in part) == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_inputs_are_those_of_the_last_layers() -> None:
    model: Any = make_model(40).double().eval()
    example = Example((0, 5, 9, 30), (-100, -100, 9, 30))
    found = gram(model, [example, example])
    seen: list[Any] = []
    layer = model.model.layers[1].mlp.down_proj
    hook = layer.register_forward_pre_hook(lambda module, given: seen.append(given[0][0, 1:3]))
    model(torch.tensor([example.ids]))
    hook.remove()
    assert torch.allclose(found[1], 2 * seen[0].T @ seen[0], atol=1e-12)


@pytest.mark.parametrize("requests", [1, 2])
def test_only_the_last_layers_of_feed_forward_parts_change(
    job: Job, tiny: Path, tmp_path: Path, requests: int
) -> None:
    found = go(job, tmp_path / "out", "eul", knobs={"eul_requests": requests}, lora_rank=4)
    stages = ["unlearn"] if requests == 1 else ["request0", "request1"]
    assert [record.stage for record in found.losses] == [s for s in stages for _ in range(3)]
    before, after = weights(tiny), weights(tmp_path / "out")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"model.layers.{n}.mlp.down_proj.weight" for n in range(2)}
    change = after["model.layers.0.mlp.down_proj.weight"].double()
    change -= before["model.layers.0.mlp.down_proj.weight"].double()
    sizes = torch.linalg.svdvals(change)
    assert int((sizes > 1e-4 * sizes[0]).sum()) <= 4 or requests == 2, "of low rank"
    assert found.options.model_dump()["lora_rank"] == 4
    with pytest.raises(OptionError, match="--eul-requests 99: there are 18 forget texts"):
        go(job, tmp_path / "many", "eul", knobs={"eul_requests": 99})
