"""What teachers say: their mean and the divergence from it, by plain loops in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from unlearnbench.errors import MetricError
from unlearnbench.methods.rows import IGNORED, Example, Soft
from unlearnbench.methods.soft import divergence, mean_of, tell

TOKENS, WORDS = 5, 7


def teachers(count: int, most: int, seed: int = 0) -> tuple[list[Any], list[Soft]]:
    """Probabilities of so many teachers, and what is kept of them."""
    torch.manual_seed(seed)
    whole = [(2 * torch.randn(TOKENS, WORDS)).double().softmax(-1) for _ in range(count)]
    kept = []
    for probs in whole:
        top = probs.topk(most, dim=-1)
        left = (1 - top.values.sum(-1, keepdim=True)) * (most < WORDS)
        both = torch.cat([top.values, left], dim=-1)
        kept.append((top.indices.int().numpy(), both.numpy()))
    return whole, kept


def by_loops(logits: torch.Tensor, whole: list[Any], kept: list[Soft]) -> float:
    """KL of the teachers' mean, where what none of them keeps is one outcome."""
    total = 0.0
    for t in range(TOKENS):
        z = logits[t].tolist()
        norm = math.log(sum(math.exp(x) for x in z))
        q, rest = [0.0] * WORDS, 0.0
        for ids, probs in kept:
            for word, p in zip(ids[t].tolist(), probs[t].tolist(), strict=False):
                q[word] += p / len(kept)
            rest += float(probs[t, -1]) / len(kept)
        named = {int(word) for ids, _ in kept for word in ids[t]}
        total += sum(q[w] * (math.log(q[w]) - z[w] + norm) for w in named)
        if rest:
            left = sum(math.exp(z[w] - norm) for w in range(WORDS) if w not in named)
            total += rest * math.log(rest / left)
    return total


@pytest.mark.parametrize(("count", "most"), [(1, 7), (3, 7), (1, 2), (3, 2)])
def test_the_divergence_is_that_of_plain_loops(count: int, most: int) -> None:
    whole, kept = teachers(count, most)
    torch.manual_seed(9)
    logits = torch.randn(TOKENS, WORDS, dtype=torch.float64, requires_grad=True)
    soft = mean_of([tuple(kept)])
    found = divergence(logits, soft)
    assert found.item() == pytest.approx(by_loops(logits.detach(), whole, kept), abs=1e-12)
    turned = divergence(logits, mean_of([tuple(kept[::-1])]))
    assert turned.item() == pytest.approx(found.item(), abs=1e-12), "in any order"
    (gradient,) = torch.autograd.grad(found, [logits])
    p = logits.detach().softmax(-1)
    mean = sum(whole) / count
    if most == WORDS:
        assert torch.allclose(gradient, p - mean, rtol=0, atol=1e-12)
    else:
        named = torch.zeros(TOKENS, WORDS, dtype=torch.bool).scatter(1, soft["ids"], True)
        left = p * ~named
        shared = soft["rest"][:, None] * left / left.sum(-1, keepdim=True)
        q = torch.zeros_like(p).scatter_add(1, soft["ids"], soft["probs"])
        assert torch.allclose(gradient, p - q - shared, rtol=0, atol=1e-12)


def test_what_is_kept_comes_to_the_whole_from_below() -> None:
    logits = torch.randn(TOKENS, WORDS, dtype=torch.float64, generator=torch.manual_seed(3))
    found = [divergence(logits, mean_of([tuple(teachers(2, k)[1])])).item() for k in (1, 3, 7)]
    mean = sum(teachers(2, 7)[0]) / 2
    exact = (mean * (mean.log() - logits.log_softmax(-1))).sum().item()
    assert found == sorted(found)
    assert found[-1] == pytest.approx(exact, abs=1e-12)


def test_a_model_that_says_what_they_say_has_no_loss_and_no_gradient() -> None:
    for most in (2, 7):
        whole, kept = teachers(1, most)
        logits = whole[0].log().requires_grad_()
        found = divergence(logits, mean_of([(kept[0], kept[0])]))
        (gradient,) = torch.autograd.grad(found, [logits])
        assert abs(found.item()) < 1e-14
        assert float(gradient.abs().max()) < 1e-15


class Context:
    """Of ``measure`` alone: logits of a table, rows one by one."""

    def __init__(self, home: Any) -> None:
        self.home, self.asked = home, 0

    def measure(self, models: Any, examples: Any, make: Any) -> None:
        for example in examples:
            self.asked += 1
            ids = torch.tensor([example.ids])
            make(*(model(ids) for model in models), torch.tensor([example.labels]))


def test_it_is_written_once_and_read_row_by_row(tmp_path: Any) -> None:
    torch.manual_seed(0)
    table = torch.randn(WORDS, WORDS)
    rows = [Example((1, 2, 3), (1, IGNORED, 3)), Example((4, 5), (IGNORED,) * 2)]
    rows.append(Example((6, 0, 2), (6, 0, 2)))
    context: Any = Context(tmp_path)
    for most in (0, 3):
        name = f"teacher{most}"
        for _ in range(2):
            found = tell(context, name, lambda ids: table[ids], rows, most)  # type: ignore[arg-type]
        assert [len(ids) for ids, _ in found] == [1, 0, 2]
        expected = table[2].softmax(-1)
        ids, probs = found[0]
        assert probs.shape == (1, (most or WORDS) + 1)
        assert np.allclose(probs[0, :-1], expected[ids[0].tolist()], rtol=0, atol=1e-7)
        left = 1 - float(expected[ids[0].tolist()].sum()) if most else 0.0
        assert probs[0, -1] == pytest.approx(left, abs=1e-7)
        assert found[2][0][:, 0].tolist() == table[[6, 0]].argmax(-1).tolist()
    assert context.asked == 2 * len(rows)
    with pytest.raises(MetricError, match="what broken says is not finite"):
        tell(context, "broken", lambda ids: table[ids] * math.nan, rows, 0)  # type: ignore[arg-type]
    assert not (tmp_path / "soft/broken.probs").exists()
