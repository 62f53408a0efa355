"""Mismatch: its mean over other answers, its bound, and that it is learning them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.methods.forget.helpers import drawn, gradient, loss, part
from unlearnbench.methods.rows import IGNORED, Part


def both() -> Part:
    return replace(part(drawn(1)), alternatives=part(drawn(2), seed=5))


def test_it_is_the_mean_over_the_tokens_of_the_other_answers() -> None:
    given = both()
    found = []
    for logits, labels in zip(given.others().logits, given.others().labels, strict=True):
        for t, label in enumerate(labels.tolist()):
            if t and label >= 0:
                scores = logits[t - 1].tolist()
                found.append(math.log(sum(math.exp(s) for s in scores)) - scores[label])
    assert loss("mismatch", given).item() == pytest.approx(sum(found) / len(found), abs=1e-12)


def test_what_is_forgotten_and_the_question_have_no_part_in_it() -> None:
    given = both()
    others = given.others()
    labels = others.labels.clone()
    labels[:, :3] = IGNORED  # a question of three tokens
    others = replace(others, labels=labels)
    total = loss("mismatch", replace(given, alternatives=others))
    ours, theirs = torch.autograd.grad(total, [given.logits, others.logits], allow_unused=True)
    assert [ours is None, theirs is None] == [True, False]
    assert theirs[:, :2].abs().max() == 0
    assert theirs[:, 2].abs().max() > 0


def test_it_is_bounded_below_by_the_number_of_answers() -> None:
    """K different answers to one question: a table that gives 1/K to each has log K, and no other
    less; ascent goes down without end.
    """
    answers = torch.tensor([[0, 2], [0, 4], [0, 5]])
    for logits in (10 * torch.randn(1, 2, 9, dtype=torch.float64) for _ in range(20)):
        others = Part(logits.expand(3, -1, -1), answers, 3, 3)
        assert loss("mismatch", replace(others, alternatives=others)) > math.log(3)
    table = torch.full((3, 2, 9), -1e9, dtype=torch.float64)
    table[:, :, [2, 4, 5]] = 0.0
    best = Part(table, answers, 3, 3)
    best = replace(best, alternatives=best)
    assert loss("mismatch", best).item() == pytest.approx(math.log(3), abs=1e-12)
    assert loss("ga", replace(best, logits=50 * drawn(), labels=both().labels)) < -20


def test_it_is_descent_on_the_other_answers() -> None:
    given = both()
    others = given.others()
    found = torch.autograd.grad(loss("mismatch", given), [others.logits])[0]
    assert torch.allclose(found, -gradient("ga", others), rtol=0, atol=1e-15)
