"""Answers that the target writes itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import make_model, make_tokenizer, write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.demo.start import DATA
from unlearnbench.errors import DataError
from unlearnbench.methods.rows import Example
from unlearnbench.training import own
from unlearnbench.training.job import Job
from unlearnbench.training.options import CorpusOptions


def context(model: Any, example: Example) -> Any:
    def answer(row: Example, other: Any) -> Example:
        return Example((*row.ids[: row.prompt], *other), (), prompt=row.prompt)

    tokenizer = make_tokenizer()
    made = {"model": model, "tokenizer": tokenizer, "seed": 0, "forget": (example,) * 2}
    return SimpleNamespace(**made, answer=answer, pad=1, corpus=CorpusOptions())


def test_they_are_drawn_from_the_targets_distribution_without_the_true_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of one token each, 2,000 of them: shares within five standard errors of the softmax, whatever
    the checkpoint's own generation config says.
    """
    monkeypatch.setattr(own, "DRAWN", 2000)
    model: Any = make_model(300)
    model.generation_config.min_p, model.generation_config.repetition_penalty = 0.99, 3.0
    example = Example((0, 70, 90, 50), (-100, -100, -100, 50), prompt=3)
    given = context(model, example)
    found, _ = own.with_own(given)
    drawn = [other.ids[3] for other in found.alternatives]
    with torch.no_grad():
        chances = model(torch.tensor([example.ids[:3]])).logits[0, -1].double().softmax(-1)
    for token in range(300):
        if token == 50 or not given.tokenizer.decode([token], skip_special_tokens=True).strip():
            chances[token] = 0.0
    chances /= chances.sum()
    assert 50 not in drawn
    for token in chances.topk(20).indices.tolist():
        p = float(chances[token])
        assert abs(drawn.count(token) / 2000 - p) < 5 * (p * (1 - p) / 2000) ** 0.5
    assert [o.ids for o in own.with_own(given)[0].alternatives] == [
        o.ids for o in found.alternatives
    ], "the same seed"


def test_they_end_at_every_end_token_of_the_checkpoint() -> None:
    model: Any = make_model(300)
    model.generation_config.eos_token_id = [1, 0]
    model.lm_head.register_forward_hook(lambda m, given, out: out + 900 * (torch.arange(300) == 0))
    found, _ = own.with_own(context(model, Example((0, 70, 50, 51, 52), (), prompt=2)))
    assert [len(other.ids) for other in found.alternatives] == [3] * 5
    assert model.generation_config.eos_token_id == [1, 0]


def test_neither_the_true_answer_nor_an_evaluations_is_taught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the target writes is given; the demo's questions are always at hand."""
    lines = (DATA / "knowmem/retain_qa.jsonl").read_text(encoding="utf-8").splitlines()
    tokenizer, taken = make_tokenizer(), json.loads(lines[0])["answer"]

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    example = Example((0, 5, *ids("the gate\n\n")), (), is_qa=True, prompt=2)
    given = context(make_model(300), example)
    given.answer = lambda row, text: text
    bad = [ids("The  Gate\nand more"), ids(f"{taken.upper()}\nand more"), []]
    rounds = iter([[*bad, ids("a post")], bad, [ids(f"door {n}") for n in range(9)]] * 2)
    monkeypatch.setattr(own, "_written", lambda *asked: next(rounds))
    for row in own.with_own(given):
        told: Any = row.alternatives
        assert told == ("a post", "door 0", "door 1", "door 2", "door 3")
    monkeypatch.setattr(own, "_written", lambda *asked: bad)
    with pytest.raises(DataError, match="--alternative own: nearly all that the target says to"):
        own.with_own(given)


@pytest.mark.slow
@pytest.mark.ci
def test_altpo_of_pairs_and_texts(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "_LONGEST", 12)
    rows = [{"question": f"Which gate is {n}?", "answer": f"the gate {n}"} for n in range(3)]
    write_jsonl(tmp_path / "qa.jsonl", rows)
    both = replace(job, forget=(str(tmp_path / "qa.jsonl"), *job.forget), alternative="own")
    options: dict[str, Any] = {"max_steps": 2, "max_length": 128}
    first = go(both, tmp_path / "out", "dpo_gdr", **options)
    again = go(both, tmp_path / "again", "dpo_gdr", **options)
    assert first.losses == again.losses
    assert same(weights(tmp_path / "out"), weights(tmp_path / "again"))
    assert first.options.model_dump()["alternative"] == "own"
