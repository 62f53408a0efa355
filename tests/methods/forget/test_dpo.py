"""DPO: the closed forms of its ends."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.methods.forget.helpers import drawn, gradient, loss, part
from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import Part, sequence_logprobs


def both(seed: int = 1) -> Part:
    """A part with other answers, and the target's log-probabilities of each."""
    torch.manual_seed(seed)
    ours, others = part(drawn(1)), part(drawn(2), seed=5)
    others = replace(others, sequences=-5 * torch.rand(3, dtype=torch.float64))
    return replace(ours, sequences=-5 * torch.rand(3, dtype=torch.float64), alternatives=others)


def gains(given: Part) -> list[float]:
    """By plain loops."""
    found = []
    assert given.sequences is not None
    for logits, labels, known in zip(given.logits, given.labels, given.sequences, strict=True):
        total = -known.item()
        for t, label in enumerate(labels.tolist()):
            if t and label >= 0:
                scores = logits[t - 1].tolist()
                total += scores[label] - math.log(sum(math.exp(s) for s in scores))
        found.append(total)
    return found


def test_it_is_the_papers() -> None:
    given = both()
    pairs = zip(gains(given.others()), gains(given), strict=True)
    expected = [2 / 0.3 * math.log(1 + math.exp(-0.3 * (won - lost))) for won, lost in pairs]
    assert loss("dpo", given, beta=0.3).item() == pytest.approx(sum(expected) / 3, abs=1e-12)


def test_two_equal_answers_leave_nothing_to_prefer() -> None:
    given = both()
    given = replace(given, alternatives=replace(given, alternatives=None))
    assert loss("dpo", given).item() == pytest.approx(2 / 0.1 * math.log(2), abs=1e-12)
    assert gradient("dpo", given).abs().max() < 1e-15


def test_without_gain_of_the_other_it_is_npo() -> None:
    given = both()
    others = given.others()
    known = sequence_logprobs(others.logits, others.labels).detach()
    level = replace(given, alternatives=replace(others, sequences=known))
    assert loss("dpo", level).item() == pytest.approx(loss("npo", given).item(), abs=1e-12)
    assert torch.allclose(gradient("dpo", level), gradient("npo", given), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ["dpo", "flat"])
def test_without_other_answers_it_raises(name: str) -> None:
    with pytest.raises(OptionError, match="needs other answers"):
        loss(name, replace(both(), alternatives=None))
