"""What is written: independent of its batch, as plain sampling has it, with its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from unlearnbench.methods.base import Drawing
from unlearnbench.training import sampled
from unlearnbench.training.sampled import Writer

PROMPTS = {f"1/{n}": [0, *range(20 + n, 24 + 2 * n)] for n in range(5)}


@pytest.fixture(scope="module")
def model(tiny: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).train()


def writer(seed: int = 3, ends: tuple[int, ...] = (1,), **changed: Any) -> Writer:
    given: dict[str, Any] = {"most": 12, "temperature": 1.0, "barred": ()}
    given |= {"stopped": lambda ids: False}
    return Writer(Drawing(**(given | changed)), seed, ends, 0)


def test_a_batch_writes_what_each_prompt_alone_does_in_transformers_too(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = writer()(model, PROMPTS)
    assert model.training, "as it was"
    assert [len(ids) for ids in found] == [12] * 5
    assert len(set(found)) == 5
    alone = [writer()(model, {name: ids})[0] for name, ids in PROMPTS.items()]
    assert alone == found
    assert writer(seed=4)(model, PROMPTS) != found
    monkeypatch.setattr(sampled, "find_continuer", lambda *given: "it is a test")
    assert writer()(model, PROMPTS) == found


def test_draws_follow_the_models_own_probabilities(model: Any) -> None:
    prompts = {str(n): PROMPTS["1/0"] for n in range(600)}
    first = torch.tensor([ids[0] for ids in writer(most=1)(model, prompts)])
    with torch.no_grad():
        model.eval()
        expected = model(torch.tensor([PROMPTS["1/0"]])).logits[0, -1].double().softmax(-1)
    top = int(expected.argmax())
    share, p = float((first == top).float().mean()), float(expected[top])
    assert abs(share - p) < 4 * (p * (1 - p) / 600) ** 0.5


@pytest.mark.parametrize("packed", [True, False])
def test_an_end_is_kept_a_barred_token_never_comes_and_a_whole_answer_stops(
    model: Any, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not packed:
        monkeypatch.setattr(sampled, "find_continuer", lambda *given: "it is a test")
    plain = writer()(model, PROMPTS)
    end = plain[0][4]
    ended = writer(ends=(end,))(model, PROMPTS)
    assert ended[0] == plain[0][: plain[0].index(end) + 1]
    barred = writer(barred=(end,), temperature=5.0, most=40)(model, PROMPTS)
    assert all(end not in ids for ids in barred)
    short = writer(stopped=lambda ids: len(ids) == 3)(model, PROMPTS)
    assert short == [ids[:3] for ids in plain]
    assert writer()(model, {}) == []
