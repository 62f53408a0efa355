from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CORPUS, make_tokenizer
from tests.models.architectures import KINDS, PROMPTS, by_loop, figures, make_kind, wrap
from unlearnbench.errors import ModelOutputError
from unlearnbench.models.likelihood import token_statistics
from unlearnbench.requests import Generate, Score

TEXTS = [*PROMPTS[:2], *(CORPUS[n][: 9 + 5 * n] for n in range(6))]


@pytest.mark.slow  # by default two texts of each, in the one pass of test_generation.py
@pytest.mark.parametrize("name", KINDS)
def test_scores_of_every_kind_of_model_equal_a_loop_in_float64(name: str) -> None:
    model = make_kind(name)
    for answer in wrap(model).score([Score(t, t) for t in TEXTS[1:5]]):
        np.testing.assert_allclose(figures(answer), by_loop(model, answer.id), atol=1e-4)


QUESTION = "Question: who? Answer:"
BEHIND = [  # prompt, answer, end token counted or not
    (QUESTION, " keeper, 1901.", True),
    (QUESTION, " keeper, 1901.", False),
    (QUESTION, " Ada Brill opened gate number 7 on 3 March; who?", True),
    (QUESTION + " ", "Ada Brill", True),  # the tokenizer joins the blank with the word behind it
    ("The harbour of Tellmouth", " opened its gate", False),
    (CORPUS[3], CORPUS[4], True),
]


def behind(model: Any, prompt: str, answer: str, end: bool) -> tuple[list[float], list[bool]]:
    """A loop in float64: log p of every token of the answer, and whether it is the likeliest."""
    tokenizer = make_tokenizer()
    ids, first = tokenizer(prompt + answer).input_ids, tokenizer(prompt).input_ids
    start = len(first) - prompt.endswith(" ")
    assert ids[:start] == first[:start]
    assert ids[start : start + 1] != first[start : start + 1]
    found, matches = [], []
    for t, token in enumerate([*ids, tokenizer.eos_token_id] if end else ids):
        if t >= start:
            with torch.no_grad():
                logits = model(torch.tensor([ids[:t]])).logits[0, -1].double()
            found.append(float(logits[token] - logits.logsumexp(0)))
            matches.append(int(logits.argmax()) == token)
    return found, matches


@pytest.mark.parametrize("batch", [None, 1, 8])
def test_answers_behind_a_prompt_equal_a_loop_in_float64(batch: int | None) -> None:
    model = make_kind("llama")
    (own,) = wrap(model).generate([Generate("own", CORPUS[3], 12)])
    cases = [*BEHIND, (CORPUS[3], own.text, False)]  # what it says itself is the likeliest
    loops = [behind(model, *each) for each in cases]
    asked = [Score(str(n), a, p, end) for n, (p, a, end) in enumerate(cases)]
    answers = {answer.id: answer for answer in wrap(model, batch).score(asked)}
    for n, (logprobs, matches) in enumerate(loops):
        answer = answers[str(n)]
        np.testing.assert_allclose(answer.logprobs, logprobs, atol=1e-4)
        assert len(answer.mean) == len(answer.std) == len(logprobs)
        assert answer.matches is not None
        assert answer.matches.tolist() == matches
    assert len(loops[0][0]) == len(loops[1][0]) + 1
    assert sum(loops[-1][1]) > 0


def test_a_whole_model_and_long_answers_in_parts_match_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_kind("llama")
    asked = [Score("a", CORPUS[4], CORPUS[3], True)]
    monkeypatch.setattr("unlearnbench.models.likelihood._HEAD_BYTES", {"cpu": 16 * 300 * 4})
    (parts,) = wrap(model).score(asked)
    assert parts.matches is not None
    assert len(parts.matches) > 16
    assert parts.matches.tolist() == behind(model, CORPUS[3], CORPUS[4], True)[1]


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Score("x", "", QUESTION), "cannot be scored behind its prompt"),
        (Score("x", ""), "a text of 1 tokens cannot be scored"),
        (Score("x", "a" * 5000, QUESTION), "do not fit the model's context"),
    ],
)
def test_an_answer_without_tokens_or_room_raises(request_: Score, words: str) -> None:
    with pytest.raises(ModelOutputError, match=words):
        list(wrap(make_kind("llama")).score([request_]))


def test_a_tokenizer_without_an_end_token_cannot_have_it_scored() -> None:
    wrapped = wrap(make_kind("llama"))
    wrapped.tokenizer.eos_token = None
    with pytest.raises(ModelOutputError, match="no end token"):
        list(wrapped.score([Score("x", " keeper", QUESTION, True)]))


@pytest.mark.parametrize("batch", [None, 4])
def test_a_longer_text_moves_no_other_ones_score(batch: int | None) -> None:
    """LongRoPE turns all positions of a pass with its longest row."""
    model = make_kind("phi3-longrope")
    texts = [PROMPTS[0], PROMPTS[1], *TEXTS[2:5]]
    for answer in wrap(model, batch).score([Score(t, t) for t in texts]):
        np.testing.assert_allclose(figures(answer), by_loop(model, answer.id), atol=1e-4)


def test_logits_never_stand_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_kind("llama")
    monkeypatch.setattr("unlearnbench.models.likelihood._HEAD_BYTES", {"cpu": 16 * 300 * 4})
    largest: list[int] = []
    model.lm_head.register_forward_hook(lambda *args: largest.append(args[2].numel() // 300))
    wrapped = wrap(model)
    answers = {a.id: a for a in wrapped.score([Score(t, t) for t in TEXTS])}
    assert wrapped._head is not None
    assert not wrapped._head.is_whole
    assert max(largest) == 16, "rows of logits at a time"
    monkeypatch.undo()
    for whole in wrap(model).score([Score(t, t) for t in TEXTS]):
        np.testing.assert_allclose(figures(answers[whole.id]), figures(whole), atol=1e-6)


def test_generation_computes_only_the_last_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_kind("llama")
    rows: list[int] = []
    wrapped = wrap(model)
    wrapped.find_continuer(wrapped.tokens.encode(TEXTS[0]), 100)
    model.lm_head.register_forward_hook(lambda *args: rows.append(args[2].numel() // 300))
    list(wrapped.generate([Generate(t, t, 3) for t in TEXTS]))
    assert max(rows) == len(TEXTS)


def test_a_forward_that_changes_logits_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_kind("llama")
    whole = model.forward

    def hotter(*args: Any, **kwargs: Any) -> Any:
        output = whole(*args, **kwargs)
        output.logits = output.logits * 1.5
        return output

    monkeypatch.setattr(model, "forward", hotter)
    wrapped = wrap(model)
    (answer,) = wrapped.score([Score("a", TEXTS[2])])
    assert wrapped._head is not None
    assert wrapped._head.is_whole
    np.testing.assert_allclose(figures(answer), by_loop(model, TEXTS[2]), atol=1e-4)


def test_a_body_that_gives_nan_is_no_part_of_a_sound_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_kind("llama")
    body, whole = model.model.forward, model.forward

    def broken(*args: Any, **kwargs: Any) -> Any:
        output = body(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state * float("nan")
        return output

    def sound(*args: Any, **kwargs: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(model.model, "forward", body)
            return whole(*args, **kwargs)

    monkeypatch.setattr(model.model, "forward", broken)
    monkeypatch.setattr(model, "forward", sound)
    wrapped = wrap(model)
    (answer,) = wrapped.score([Score("a", TEXTS[2])])
    assert wrapped._head is not None
    assert wrapped._head.is_whole
    np.testing.assert_allclose(figures(answer), by_loop(model, TEXTS[2]), atol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 1.0, 40.0])
def test_statistics_equal_float64(scale: float) -> None:
    torch.manual_seed(1)
    logits, targets = scale * torch.randn(40, 5000), torch.randint(0, 5000, (40,))
    logp = logits.double().log_softmax(-1)
    mean = (logp.exp() * logp).sum(-1)
    spread = (logp.exp() * (logp - mean[:, None]).square()).sum(-1).sqrt()
    own = logp.gather(1, targets[:, None])[:, 0]
    found = token_statistics(logits, targets, "x")
    for ours, theirs in zip(found, (own, mean, spread), strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_odd_logit_is_an_error(value: float) -> None:
    logits = torch.randn(9, 50)
    logits[7, 31] = value
    with pytest.raises(ModelOutputError, match="t at none"):
        token_statistics(logits, torch.zeros(9, dtype=torch.long), "t at none")


def test_statistics_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(23, 11), torch.arange(23) % 11
    whole = np.stack(token_statistics(logits, targets, "x"))
    monkeypatch.setattr("unlearnbench.models.likelihood._CHUNK_BYTES", 4 * 11 * 4)
    np.testing.assert_allclose(np.stack(token_statistics(logits, targets, "x")), whole, atol=1e-6)
