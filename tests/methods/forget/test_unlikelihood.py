"""Unlikelihood: CE-U's gradient, and what happens at its ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import write_jsonl
from tests.methods.forget.helpers import WORDS, drawn, gradient, loss, part
from tests.training.helpers import go
from unlearnbench.methods.rows import IGNORED
from unlearnbench.training.job import Job


def test_its_gradient_is_that_of_ce_u() -> None:
    """Cross-entropy with the model's own distribution without the true token, held constant."""
    given = part(drawn())
    logits, labels = given.logits, given.labels
    total = torch.zeros((), dtype=torch.float64)
    for i, t in (labels[:, 1:] != IGNORED).nonzero().tolist():
        others = logits[i, t].detach().clone()
        others[labels[i, t + 1]] = -torch.inf
        total = total - (others.softmax(0) * logits[i, t].log_softmax(0)).sum()
    (expected,) = torch.autograd.grad(total / given.all_tokens, [logits])
    assert torch.allclose(gradient("unlikelihood", given), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("height", "value"), [(60.0, 60.0), (-60.0, 0.0)])
def test_it_is_finite_where_a_token_is_certain_and_0_where_it_is_impossible(
    height: float, value: float
) -> None:
    """With p the sigmoid of height - log(WORDS - 1): -log(1 - p) = log(1 + e^height / (W - 1))."""
    given = part(torch.zeros(1, 3, WORDS, dtype=torch.float32))
    logits = given.logits.clone()
    logits[0, 0, given.labels[0, 1]] = height
    given = replace(given, logits=logits.requires_grad_())
    assert given.all_tokens == 1
    found = loss("unlikelihood", given).item()
    expected = torch.log1p(torch.tensor(height).double().exp() / (WORDS - 1)).item()
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found == pytest.approx(value, abs=3)
    assert bool(gradient("unlikelihood", given).isfinite().all())


def test_the_first_token_of_an_answer_can_be_left_out(job: Job, tmp_path: Path) -> None:
    rows = [{"question": f"Which gate is {n}?", "answer": f"the gate {n}"} for n in range(6)]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    pairs = replace(job, forget=(str(tmp_path / "qa.jsonl"),), retain=())
    whole = go(pairs, tmp_path / "whole", "unlikelihood", max_steps=1)
    rest = go(pairs, tmp_path / "rest", "unlikelihood", max_steps=1, knobs={"skip_first": True})
    assert rest.losses[0].loss != pytest.approx(whole.losses[0].loss, rel=1e-3)
    texts = [
        go(job, tmp_path / f"{skip}", "unlikelihood", max_steps=1, knobs={"skip_first": skip})
        for skip in (False, True)
    ]
    assert texts[0].losses == texts[1].losses, "a text is no answer"
