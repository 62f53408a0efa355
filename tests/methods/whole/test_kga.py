"""KGA: its distances by plain loops, the direction that the gap gives, and whole trainings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CORPUS, MakeCheckpoint, make_tokenizer, write_jsonl
from tests.training.helpers import same, weights
from unlearnbench.errors import OptionError
from unlearnbench.methods.base import Gradient
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.methods.whole.kga import Distances, aligned, divergence
from unlearnbench.training.batches import as_batch, collate, sums_of
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.trainer import Reference

LABELS = torch.tensor([[0, 1, 2, 3], [IGNORED, IGNORED, 2, IGNORED]])


def test_the_divergence_is_the_papers_with_the_specialist_first() -> None:
    torch.manual_seed(0)
    known, ours = (torch.randn(2, 4, 6, dtype=torch.float64) for _ in range(2))
    expected = []
    for row in range(2):
        total = 0.0
        for t in range(1, 4):
            if LABELS[row, t] >= 0:
                q, p = (z[row, t - 1].tolist() for z in (known, ours))
                sums = [math.log(sum(math.exp(x) for x in z)) for z in (q, p)]
                for a, b in zip(q, p, strict=True):
                    total += math.exp(a - sums[0]) * ((a - sums[0]) - (b - sums[1]))
        expected.append(total)
    assert divergence(known, ours, LABELS).tolist() == pytest.approx(expected, abs=1e-12)
    wide = [torch.nn.functional.pad(z, (0, 0, 0, 3), value=9.0) for z in (known, ours)]
    padded = torch.nn.functional.pad(LABELS, (0, 3), value=IGNORED)
    assert divergence(wide[0], wide[1], padded).tolist() == pytest.approx(expected, abs=1e-12)
    assert divergence(ours, ours, LABELS).abs().max() == 0


class Step:
    """A step whose distance is 2."""

    def forget(self) -> Gradient:
        return Gradient({"forget": 2.0}, {"w": torch.tensor(3.0)})

    def retain(self) -> Gradient:
        return Gradient({"retain": 0.5}, {"w": torch.tensor(1.0)})


@pytest.mark.parametrize(("goal", "value", "gradient"), [(0.0, 2, 4), (3.0, 1, -2), (2.0, 0, 1)])
def test_it_goes_towards_the_gap(goal: float, value: float, gradient: float) -> None:
    """Without a gap it distils the specialist; above the distance it moves away."""
    step: Any = Step()
    found = aligned(step, goal)
    assert found.terms == {"forget": value, "retain": 0.5}
    assert found.of["w"] == gradient


@pytest.fixture
def batch() -> Any:
    rows = [
        {"forget": (Example(ids, ids),), "retain": (Example(ids[::-1], ids[::-1]),)}
        for ids in [(3, 9, 8, 7), (5, 6)]
    ]
    sums = sums_of(rows)  # type: ignore[arg-type]
    return as_batch(collate([(row, sums) for row in rows], 0))  # type: ignore[misc]


def test_equal_models_have_no_distance_and_no_gradient(tiny: Path, batch: Any) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval()
    frozen = Reference(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval())
    terms = Distances(frozen, frozen, 0.3)(model, batch)
    terms["loss"].backward()
    assert [abs(terms[name].item()) < 1e-15 for name in ("forget", "retain")] == [True, True]
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-15


def test_the_terms_are_means_over_learned_tokens(tiny: Path, batch: Any) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    model, first, second = (
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval() for _ in range(3)
    )
    for other in (first, second):
        with torch.no_grad():
            for weight in other.parameters():
                weight += 0.02 * torch.randn_like(weight)
    terms = Distances(Reference(first), Reference(second), 0.3)(model, batch)
    with torch.no_grad():
        for role, other, factor in (("forget", first, 1.0), ("retain", second, 0.3)):
            where: Any = batch.slice(role)
            both = [m(**batch.inputs_of(role)).logits for m in (other, model)]
            total = float(divergence(both[0], both[1], batch.labels[where]).sum())
            assert terms[role].item() == pytest.approx(factor * total / 4, abs=1e-12)
            assert total > 0


@pytest.fixture
def asked(job: Job, tmp_path: Path) -> Job:
    write_jsonl(tmp_path / "unseen.jsonl", [{"text": text} for text in CORPUS[10:14]])
    short = job.options.model_copy(update={"max_steps": 2, "lr": 1e-4})
    unseen = (str(tmp_path / "unseen.jsonl"),)
    return replace(job, unseen=unseen, options=short, out=tmp_path / "out")


def test_it_trains_two_specialists_of_the_base_and_then_the_target(
    asked: Job, tiny: Path, tmp_path: Path, make_checkpoint: MakeCheckpoint
) -> None:
    base = str(make_checkpoint("base"))
    training = unlearn(replace(asked, base=base), "kga", {"specialist_epochs": 1.0})
    stages = list(dict.fromkeys(record.stage for record in training.losses))
    assert stages == ["unseen", "specialist", "unlearn"]
    assert training.base is not None
    first = next(record for record in training.losses if record.stage == "unlearn")
    assert first.retain == pytest.approx(0.0, abs=1e-6), "the target itself"
    assert first.forget is not None
    assert first.forget > 0
    assert not same(weights(tmp_path / "out"), weights(tiny))
    with pytest.raises(OptionError, match="kga learns from a set of unseen texts; give --unseen"):
        unlearn(replace(asked, unseen=(), out=tmp_path / "no"), "kga")
    with pytest.raises(OptionError, match="ga_gdr begins at no other model; leave --base out"):
        unlearn(replace(asked, unseen=(), base=base, out=tmp_path / "no"), "ga_gdr")
    other = str(make_checkpoint("other"))
    make_tokenizer(texts=["quite other words", "in another order"] * 50).save_pretrained(other)
    with pytest.raises(OptionError, match="has other tokens than --model"):
        unlearn(replace(asked, base=other, out=tmp_path / "no"), "kga")
