from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import CORPUS, load_at, make_tokenizer
from tests.models.architectures import (
    KINDS,
    MIXED,
    PROMPTS,
    alone,
    by_loop,
    decoded,
    figures,
    make_kind,
    texts,
    wrap,
)
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.errors import ModelOutputError
from unlearnbench.models.batches import Budget
from unlearnbench.models.generation import Chooser, Continuer, shared_prefix
from unlearnbench.models.packed_rows import Layer
from unlearnbench.requests import Generate, Sampling, Score

CROSSING = (CORPUS[0] + CORPUS[1])[:184]


# Dearer than any other kind; its twin with a short window stands for it by default.
_RARE = {"gemma4": (pytest.mark.slow, pytest.mark.ci)}


@pytest.mark.parametrize("name", [pytest.param(n, marks=_RARE.get(n, ())) for n in KINDS])
def test_every_kind_of_model_answers_as_one_prompt_at_a_time(name: str) -> None:
    """Texts by transformers alone, scores by a loop in float64."""
    model = make_kind(name)
    prompts = PROMPTS[::2]
    ours = wrap(model)
    found = texts(ours, prompts, 10)
    assert found == decoded({p: alone(model, p, 10) for p in prompts}, prompts)
    assert len(set(found.values())) > 1, "outputs that are all alike would prove nothing"
    ids = ours.tokens.encode(PROMPTS[0])
    assert isinstance(ours.find_continuer(ids, 200), Continuer) == KINDS[name][2]
    drafts = (found[prompts[0]], found[prompts[1]][:5] + " and")
    drafted = [Generate(p, p, 10, drafts=(*drafts, found[p])) for p in prompts]
    known = [*ours.generate(drafted)]
    assert {answer.id: answer.text for answer in known} == found
    assert (sum(answer.drafted for answer in known) > 0) == KINDS[name][2]
    for answer in ours.score([Score(t, t) for t in (PROMPTS[1], CORPUS[0][:14])]):
        np.testing.assert_allclose(figures(answer), by_loop(model, answer.id), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 4, None])
@pytest.mark.parametrize("prompts", [PROMPTS, MIXED, PROMPTS[:1]], ids=["shared", "mixed", "one"])
def test_text_does_not_depend_on_batch_or_prefix(
    llama: Any, expected: dict[str, list[int]], prompts: list[str], batch: int | None
) -> None:
    assert texts(wrap(llama, batch), prompts) == decoded(expected, prompts)


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("name", ["phi3-longrope", "rwkv"])
def test_a_neighbour_moves_no_text(name: str, batch: int | None) -> None:
    """LongRoPE turns all positions of a pass with its longest row; RWKV reads padding as text."""
    model = make_kind(name)
    lengths = [len(make_tokenizer()(p).input_ids) for p in (*MIXED, CORPUS[0], *PROMPTS)]
    assert min(lengths) < 100 < 120 < max(lengths)
    assert 110 < len(make_tokenizer()(CROSSING).input_ids) <= 120, "crosses while it is continued"
    prompts = [*MIXED, CROSSING, *PROMPTS[:2]]
    expected = decoded({p: alone(model, p, 12) for p in prompts}, prompts)
    assert texts(wrap(model, batch), prompts, 12) == expected


def test_the_shared_beginning_is_run_once(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    whole = llama.model.forward

    def watch(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["input_ids"].numel())
        return whole(*args, **kwargs)

    model = wrap(llama, 3)
    rows = [model.tokens.encode(p) for p in PROMPTS]
    model.find_continuer(rows[0], 200)  # its own few tokens are not counted
    monkeypatch.setattr(llama.model, "forward", watch)
    texts(model, PROMPTS, 4)
    shared = shared_prefix(rows)
    assert shared > 100
    assert widths[0] == shared
    assert sum(widths[1:]) <= sum(len(r) - shared for r in rows) + 3 * len(rows)


def test_one_long_prompt_does_not_take_its_memory_for_every_row(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of a batch are one tensor: a row takes what the longest takes."""
    most, taken = 400, []
    monkeypatch.setattr(
        "unlearnbench.models.generation.generation_budget", lambda *_: Budget(most, most)
    )
    whole = Layer.make_room

    def watch(self: Layer, key: Any, value: Any, rows: int, room: int) -> Any:
        taken.append((rows, rows * room))
        return whole(self, key, value, rows, room)

    model = wrap(llama)
    model.find_continuer(model.tokens.encode(MIXED[0]), 200)
    monkeypatch.setattr(Layer, "make_room", watch)
    prompts = [CORPUS[0] * 2, *(CORPUS[n][:12] for n in range(20))]
    answers = [*model.generate([Generate(str(n), p, 4) for n, p in enumerate(prompts)])]
    assert len(answers) == len(prompts)
    assert len({rows for rows, _ in taken}) > 1
    assert all(tokens <= most or rows == 1 for rows, tokens in taken)


def test_rows_that_ended_leave_the_batch(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    whole = Continuer._step

    def watch(self: Continuer, batch: Any, *rest: Any) -> Any:
        sizes.append(len(batch.alive))
        return whole(self, batch, *rest)

    monkeypatch.setattr(Continuer, "_step", watch)
    stop = decoded(expected, PROMPTS)[PROMPTS[1]][4:6]
    cut = texts(wrap(llama), PROMPTS, 20, stop)
    steps = sizes[2:]  # two of them belong to the comparison with the model's own forward
    assert steps[0] == len(PROMPTS) > steps[-1]
    assert steps == sorted(steps, reverse=True)
    for prompt, text in decoded(expected, PROMPTS).items():
        assert cut[prompt] == text.split(stop)[0]


@pytest.mark.parametrize("at", ["run_prefix", "_run_prompts", "_step"])
def test_nothing_is_lost_when_memory_runs_out(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    model = wrap(llama)
    model.find_continuer(model.tokens.encode(PROMPTS[0]), 200)
    whole = getattr(Continuer, at)
    failures = [2]  # 6 and then 3 or fewer prompts are tried

    def fail(self: Continuer, *args: Any) -> Any:
        if failures[0]:
            failures[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(self, *args)

    monkeypatch.setattr(Continuer, at, fail)
    answers = [*model.generate([Generate(p, p, 20) for p in PROMPTS])]
    assert len(answers) == len(PROMPTS), "each exactly once"
    assert {a.id: a.text for a in answers} == decoded(expected, PROMPTS)


def test_the_config_is_given_back(llama: Any) -> None:
    before = llama.config._attn_implementation
    texts(wrap(llama), PROMPTS, 3)
    assert llama.config._attn_implementation == before


def test_prompts_that_were_answered_move_no_other(tiny: Path) -> None:
    requests = [Generate(p, p, 8) for p in PROMPTS]
    model = load_at(open_checkpoint(str(tiny), LoadOptions()), "none", batch=2)
    whole = {a.id: a for a in model.generate(requests)}
    done = set(PROMPTS[2:5])
    assert {a.id: a for a in model.generate(requests, done)} == {
        k: v for k, v in whole.items() if k not in done
    }


def test_the_shared_prefix_leaves_each_row_a_token_and_is_not_short() -> None:
    many = [*range(20)]
    assert shared_prefix([[*many, 3], [*many, 3, 4]]) == 20
    assert shared_prefix([many, many]) == 19
    assert shared_prefix([[2, *many], [1, 2, *many]]) == 0
    assert shared_prefix([many[:15], many]) == 0, "too short to be run apart"
    assert shared_prefix([many]) == 0


def test_sampling_follows_the_softmax_of_the_top_k() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    counts: Counter[int] = Counter()
    draws = 4000
    for seed in range(draws):
        (token,) = Chooser(["a"], "none", Sampling(0.5, 3, seed)).choose(logits, [0])
        counts[token] += 1
    weights = [math.exp(x / 0.5) for x in (2.0, 1.0, 0.0)]
    assert counts[3] == 0
    for token, weight in enumerate(weights):
        expected = weight / sum(weights)
        error = 4 * math.sqrt(expected * (1 - expected) / draws)
        assert counts[token] / draws == pytest.approx(expected, abs=error)


def test_the_finite_check_names_the_row_that_is_broken() -> None:
    logits = torch.zeros(2, 4)
    logits[1, 2] = math.nan
    with pytest.raises(ModelOutputError, match="third at int4"):
        Chooser(["first", "second", "third"], "int4", None).choose(logits, [0, 2])
