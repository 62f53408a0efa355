from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.models.architectures import MIXED, PROMPTS, decoded, wrap
from unlearnbench.models import drafting, packable, packed_rows
from unlearnbench.models.drafting import draft_ids
from unlearnbench.models.guesses import Guesses
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Generated, Sampling

NEW = 20


@pytest.fixture(autouse=True)
def drafts_as_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A draft is a list of token ids here: a random model's tokens are not those of its text."""
    given = staticmethod(lambda _, request: [json.loads(draft) for draft in request.drafts])
    monkeypatch.setattr(drafting, "draft_ids", given)


def answers(
    model: HFModel, drafts: dict[str, list[list[int]]], *stop: str, new: int = NEW
) -> dict[str, Generated]:
    """To prompts with these drafts; without one a prompt has the empty draft, which is none."""
    texts = {p: tuple(map(json.dumps, rows or [[]])) for p, rows in drafts.items()}
    asked = [Generate(p, p, new, stop, drafts=given) for p, given in texts.items()]
    return {answer.id: answer for answer in model.generate(asked)}


def total(found: dict[str, Generated]) -> tuple[int, int, int]:
    """Passes, drafted and accepted tokens of all."""
    counts = [(a.passes, a.drafted, a.accepted) for a in found.values()]
    passes, drafted, accepted = map(sum, zip(*counts, strict=True))
    return passes, drafted, accepted


def wrong(row: list[int]) -> list[int]:
    return [(token + 1) % 300 for token in row]


DRAFTS: dict[str, Callable[[list[int]], list[list[int]]]] = {
    "right": lambda row: [row],
    "wrong": lambda row: [wrong(row)],
    "short": lambda row: [row[:2]],
    "long": lambda row: [[*row, *row, 5]],
    "ended": lambda row: [[*row, 1, 1, *row]],
    "half": lambda row: [[*row[:3], *wrong(row[3:4]), *row[4:]]],
    "none": lambda row: [],
    "several": lambda row: [wrong(row), [*row[:5], *wrong(row[5:])], row],
}


@pytest.mark.parametrize("batch", [1, 4, None])
@pytest.mark.parametrize("prompts", [PROMPTS, MIXED], ids=["shared", "mixed"])
def test_no_draft_moves_a_text(
    llama: Any, expected: dict[str, list[int]], prompts: list[str], batch: int | None
) -> None:
    rows = {p: expected[p] for p in prompts}
    texts, tokens = decoded(expected, prompts), sum(map(len, rows.values()))
    ends = sum(len(row) < NEW for row in rows.values())
    model, right = wrap(llama, batch), {}
    for kind, draft in DRAFTS.items():
        found = answers(model, {p: draft(row) for p, row in rows.items()})
        assert {p: answer.text for p, answer in found.items()} == texts, kind
        assert {p: answer.n_tokens for p, answer in found.items()} == {
            p: len(row) for p, row in rows.items()
        }
        passes, drafted, accepted = total(found)
        assert 0 <= accepted <= drafted
        guessed_ends = passes - (tokens + ends - accepted)
        assert 0 <= guessed_ends <= ends, "a pass gives one token that was not guessed, or an end"
        right[kind] = accepted
    assert right["right"] > 0.7 * tokens
    assert right["right"] > right["half"] > right["short"] > right["wrong"]


@pytest.mark.parametrize("kind", ["right", "wrong", "half", "ended"])
def test_a_stop_string_inside_a_draft_ends_the_answer_there(
    llama: Any, expected: dict[str, list[int]], kind: str
) -> None:
    texts = decoded(expected, PROMPTS)
    stop = texts[PROMPTS[1]][4:6]
    found = answers(wrap(llama), {p: DRAFTS[kind](expected[p]) for p in PROMPTS}, stop)
    plain = {a.id: a for a in wrap(llama).generate([Generate(p, p, NEW, (stop,)) for p in PROMPTS])}
    for prompt, answer in found.items():
        assert answer.text == texts[prompt].split(stop)[0]
        assert answer.n_tokens == plain[prompt].n_tokens


@pytest.mark.parametrize("new", [1, 2, 3])
def test_an_answer_of_few_tokens_is_no_longer_with_a_draft(
    llama: Any, expected: dict[str, list[int]], new: int
) -> None:
    found = answers(wrap(llama), {p: [expected[p]] for p in PROMPTS}, new=new)
    assert all(answer.n_tokens <= new for answer in found.values())
    assert {p: a.text for p, a in found.items()} == decoded(
        {p: expected[p][:new] for p in PROMPTS}, PROMPTS
    )


@pytest.mark.parametrize("kind", ["right", "wrong", "half"])
def test_a_sampled_answer_is_the_same_with_a_draft(llama: Any, kind: str) -> None:
    """Each row's noise is drawn for a token that is decided, and never for one behind it."""
    sampling, rows = Sampling(0.9, 50, seed=3), {}
    asked = [Generate(p, p, 12, (), sampling) for p in PROMPTS]
    model = wrap(llama)
    finished = model.tokens.finished

    def watch(request: Generate, kept: Any) -> Generated:
        rows[request.id] = [*kept]
        return finished(request, kept)

    object.__setattr__(model.tokens, "finished", watch)
    plain = {a.id: a.text for a in model.generate(asked)}
    drafts = {p: tuple(map(json.dumps, DRAFTS[kind]([*row, 5]))) for p, row in rows.items()}
    again = [Generate(p, p, 12, (), sampling, drafts=drafts[p]) for p in PROMPTS]
    found = {a.id: a for a in model.generate(again)}
    assert {p: a.text for p, a in found.items()} == plain
    assert kind == "wrong" or total(found)[2] > 0


def test_a_row_behind_a_wrong_draft_that_is_not_finite_is_as_without(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is masked is multiplied by zero, and 0 x NaN is NaN."""
    store = packed_rows.Several.attend
    seen = []

    def overflow(self: Any, layer: Any, query: Any, pair: Any, scale: float) -> Any:
        found = store(self, layer, query, pair, scale)
        at, place = int(self.rows[-1]), int(self.places[-1])
        if int((self.rows == at).sum()) > 1:  # a draft's last token, which is wrong below
            layer.own[1][at, :, place] = float("nan")
            seen.append(place)
        return found

    model = wrap(llama)
    drafts = {p: [[*expected[p][:6], expected[p][6] + 1]] for p in PROMPTS[:2]}
    answers(model, drafts)  # its comparison with the model's own forward is behind it
    monkeypatch.setattr(packed_rows.Several, "attend", overflow)
    monkeypatch.setattr(Guesses, "guess", _always_wrong)
    found = answers(model, drafts)
    assert seen
    assert {p: a.text for p, a in found.items()} == decoded(expected, PROMPTS[:2])


@pytest.mark.parametrize("shared", [0, 7])
def test_rows_attend_one_by_one_as_they_do_together(
    monkeypatch: pytest.MonkeyPatch, shared: int
) -> None:
    """Two heads of keys, six of queries; a row of three tokens, one of one, one of nine."""
    torch.manual_seed(0)
    counts, lengths, found = [3, 1, 9], [4, 12, 0], []
    query, key, value = (torch.randn(1, heads, 13, 8) for heads in (6, 2, 2))
    prefix = (torch.randn(2, shared, 8), torch.randn(2, shared, 8)) if shared else None
    own = torch.randn(2, 3, 2, 20, 8)
    for alone in (0, 10**9):
        monkeypatch.setattr(drafting, "_ALONE", alone)
        phase, places = drafting._several(lengths, counts, "cpu", shared)
        assert bool(phase.parts) == (alone == 0)
        assert places == [4, 5, 6, 12, *range(9)]
        layer = packed_rows.Layer(prefix)
        layer.own = own[0].clone(), own[1].clone()
        found.append(phase.attend(layer, query, (key, value), 0.3))
    first, second = found
    torch.testing.assert_close(first, second, atol=1e-6, rtol=1e-6)
    for row, (start, count) in enumerate(zip((0, 3, 4), counts, strict=True)):
        for n in range(count):  # by the definition of attention
            at, there = start + n, lengths[row] + n + 1
            for head in range(6):
                keys, values = (
                    layer.own[0][row, head // 3, :there],
                    layer.own[1][row, head // 3, :there],
                )
                if prefix is not None:
                    keys = torch.cat([prefix[0][head // 3], keys])
                    values = torch.cat([prefix[1][head // 3], values])
                weights = (keys @ query[0, head, at] * 0.3).softmax(0)
                torch.testing.assert_close(
                    first[0, head, at], weights @ values, atol=1e-5, rtol=1e-5
                )


def _always_wrong(self: Any, row: int, new: Any, most: int, rows: int) -> list[int]:
    return [2] if new and most else []


def test_a_model_that_gives_other_logits_with_drafts_is_run_without(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    several = drafting._several

    def shifted(*given: Any) -> Any:
        phase, places = several(*given)
        return phase, [place + 7 for place in places]

    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(drafting, "_several", shifted)
    found = answers(wrap(llama), {p: [expected[p]] for p in PROMPTS})
    assert {p: answer.text for p, answer in found.items()} == decoded(expected, PROMPTS)
    assert total(found) == (0, 0, 0)
    assert "left out: its attention gives other logits" in caplog.text


def test_where_rows_move_each_other_nothing_is_drafted(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    monkeypatch.setattr(packable, "mixes_rows", lambda _: True)
    found = answers(wrap(llama), {p: [expected[p]] for p in PROMPTS})
    assert {p: answer.text for p, answer in found.items()} == decoded(expected, PROMPTS)
    assert total(found) == (0, 0, 0)
    assert "would move an answer's rounding" in caplog.text


def test_memory_that_runs_out_halves_the_batch(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = wrap(llama)
    answers(model, {p: [expected[p]] for p in PROMPTS[:2]}, new=2)
    whole, failures = drafting.DraftedRows._go_on, [2]

    def fail(self: Any, *given: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *given)

    monkeypatch.setattr(drafting.DraftedRows, "_go_on", fail)
    found = answers(model, {p: [expected[p][:9]] for p in PROMPTS})
    assert {p: answer.text for p, answer in found.items()} == decoded(expected, PROMPTS)


def test_a_draft_is_tokens_as_they_follow_the_prompt(llama: Any) -> None:
    tokens = wrap(llama).tokens
    for prompt, text in ((PROMPTS[0], " and so on"), ("The wa", "ll of the town")):
        request = Generate("a", prompt, 20, drafts=(text,))
        (ids,) = draft_ids(tokens, request)
        assert tokens.decode(ids) == text
    long = Generate("a", "The", 2, drafts=("word " * 10_000, ""))
    first, second = draft_ids(tokens, long)
    assert len(first) <= 64, "no more of it than an answer may have"
    assert second == []


def test_a_draft_ends_before_a_token_that_the_model_has_not(llama: Any) -> None:
    """An added token may stand in a text by itself alone, and not behind its prompt."""
    tokens = wrap(llama).tokens
    beyond = tokens.config.vocab_size

    def tokenized(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [1, 2] if add_special_tokens and text == "a" else [3, beyond, 4]}

    def whole(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [5, 6]} if text == "ab" else tokenized(text, add_special_tokens)

    request = Generate("a", "a", 20, drafts=("b",))
    fakes: list[Any] = [whole, tokenized]
    alone, everywhere = fakes
    assert draft_ids(replace(tokens, tokenizer=alone), request) == [[3]]
    assert draft_ids(replace(tokens, tokenizer=everywhere), request) == [], "left out"


def test_products_with_keys_that_are_part_of_a_room() -> None:
    drawn = torch.Generator().manual_seed(0)
    room = torch.randn(6, 70, 16, generator=drawn).bfloat16()
    keys, asked = room[:, :50], torch.randn(6, 3, 16, generator=drawn).bfloat16()
    assert not keys.is_contiguous()
    expected = asked.double() @ keys.double().transpose(1, 2)
    for held in (keys, keys.contiguous()):
        found = packed_rows._products(asked, held)
        assert found.is_contiguous(), "it is masked in place"
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=2**-6)
