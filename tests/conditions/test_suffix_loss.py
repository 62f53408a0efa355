"""The loss of a suffix, against plain transformers, and its gradient against finite differences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conditions.test_asking import toy_task
from tests.conftest import CORPUS, Toy, load_at
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.asking import question_end
from unlearnbench.conditions.suffix_loss import Question, SuffixLoss
from unlearnbench.errors import ModelOutputError, PrecisionError


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return load_at(open_checkpoint(str(tiny), LoadOptions()), "none")


def questions(toy: Toy) -> list[Question]:
    task = toy_task(toy)
    found = []
    for sample in task.samples:
        end = question_end(task.spec, sample)
        found.append(Question(sample.id, sample.text[:end], sample.text[end:], sample.target))
    return found


def plain_loss(model: Any, question: Question, suffix: str) -> float:
    """By transformers alone: the text's ids in one row, the answer's scored."""
    prompt = f"{question.before}{suffix} {question.after}"
    begin = len(model.tokenizer(prompt)["input_ids"])
    ids = torch.tensor([model.tokenizer(prompt + question.answer)["input_ids"]])
    with torch.no_grad():
        logs = model.network(input_ids=ids).logits[0].double().log_softmax(-1)
    places = range(begin, ids.shape[1])
    return -sum(float(logs[at - 1, ids[0, at]]) for at in places) / len(places)


def test_the_loss_is_that_of_the_text(model: Any, toy: Toy) -> None:
    asked = questions(toy)
    loss = SuffixLoss(model, asked, "here")
    assert loss.shared > 16  # what all begin with is run once
    for text in (" ! ! ! ! ! ! ! ! ! !", " gate boats ! ! ! ! ! ! ! !"):
        ids = loss.first if text.startswith(" !") else None
        if ids is None:
            row = loss.rows[0]
            whole = loss.tokens.encode(asked[0].prompt(text))
            ids = whole[len(row.head) : len(whole) - len(row.tail)]
        assert loss.survives(ids, every=True)
        assert loss.text(ids) == text
        expected = sum(plain_loss(model, question, text) for question in asked) / 3
        assert loss.of_ids([ids]) == pytest.approx([expected], abs=1e-4)
        assert loss.of_ids([ids, ids]) == pytest.approx([expected] * 2, abs=1e-4)


def test_the_gradient_is_that_of_finite_differences(model: Any, toy: Toy) -> None:
    loss = SuffixLoss(model, questions(toy), "here")
    before = {name: p.detach().clone() for name, p in model.network.named_parameters()}
    with torch.no_grad():
        here = loss.table(torch.tensor(loss.first)).float()
    value, gradient = loss.with_gradient(here)
    assert value == pytest.approx(loss.of_ids([loss.first])[0], abs=1e-4)
    toward = torch.randn(here.shape, generator=torch.Generator().manual_seed(0))
    step = 1e-3
    ends = [loss.with_gradient(here + sign * step * toward)[0] for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(
        float((gradient * toward).sum()), rel=0.02, abs=1e-3
    )
    for name, parameter in model.network.named_parameters():  # nothing is trained
        assert parameter.equal(before[name])
        assert parameter.grad is None


def test_what_is_run_is_counted(model: Any, toy: Toy) -> None:
    loss = SuffixLoss(model, questions(toy), "here")
    assert (loss.forward_passes, loss.backward_passes) == (0, 0)
    loss.of_ids([loss.first] * 5)
    with torch.no_grad():
        loss.with_gradient(loss.table(torch.tensor(loss.first)))
    assert (loss.forward_passes, loss.backward_passes) == (5 * 3 + 3, 3)


def test_a_loss_that_is_not_finite_is_no_search(tiny: Path, toy: Toy) -> None:
    broken = load_at(open_checkpoint(str(tiny), LoadOptions()), "none")
    with torch.no_grad():
        broken.network.get_output_embeddings().weight[5] = float("nan")
    with pytest.raises(ModelOutputError, match="NaN or infinite"):
        SuffixLoss(broken, questions(toy), "here")


def test_an_answer_without_a_token_is_refused(model: Any, toy: Toy) -> None:
    empty = [Question("a/0", CORPUS[0], "\nAnswer: ", "")]
    with pytest.raises(PrecisionError, match="a/0: its answer has no token of its own"):
        SuffixLoss(model, empty, "here")
