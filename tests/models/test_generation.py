from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CORPUS, load_at, make_tokenizer
from tests.models.architectures import KINDS, PROMPTS, alone, make_kind, wrap
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.checkpoints.source import open_source
from unlearnbench.errors import ModelOutputError
from unlearnbench.models import generation, packable, packed_rows
from unlearnbench.models.batches import Budget
from unlearnbench.models.generation import Continuer, common_prefix
from unlearnbench.models.hf import HFModel
from unlearnbench.models.packed_rows import Layer
from unlearnbench.requests import Generate, Sampling

MIXED = [CORPUS[n][: 4 + 11 * n] for n in (0, 2, 3, 5, 8, 9)]  # no common beginning to speak of

CROSSING = (CORPUS[0] + CORPUS[1])[:184]


@pytest.fixture(scope="module")
def llama() -> Any:
    return make_kind("llama")


@pytest.fixture(scope="module")
def expected(llama: Any) -> dict[str, list[int]]:
    return {p: alone(llama, p, 20) for p in (*PROMPTS, *MIXED)}


def texts(model: HFModel, prompts: Sequence[str], new: int = 20, *stop: str) -> dict[str, str]:
    return {a.id: a.text for a in model.generate([Generate(p, p, new, stop) for p in prompts])}


def decoded(rows: dict[str, list[int]], prompts: Sequence[str]) -> dict[str, str]:
    tokenizer = make_tokenizer()
    return {p: str(tokenizer.decode(rows[p], skip_special_tokens=True)) for p in prompts}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_writes_what_it_writes_one_prompt_at_a_time(name: str) -> None:
    model = make_kind(name)
    prompts = PROMPTS[::2]
    ours = wrap(model)
    found = texts(ours, prompts, 10)
    assert found == decoded({p: alone(model, p, 10) for p in prompts}, prompts)
    assert len(set(found.values())) > 1, "outputs that are all alike would prove nothing"
    ids = ours._encode(PROMPTS[0])
    assert isinstance(ours._find_continuer(ids, 200), Continuer) == KINDS[name][2]


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
    rows = [model._encode(p) for p in PROMPTS]
    model._find_continuer(rows[0], 200)  # its own few tokens are not counted
    monkeypatch.setattr(llama.model, "forward", watch)
    texts(model, PROMPTS, 4)
    shared = common_prefix(rows)
    assert shared > 100
    assert widths[0] == shared
    assert sum(widths[1:]) <= sum(len(r) - shared for r in rows) + 3 * len(rows)


def test_one_long_prompt_does_not_take_its_memory_for_every_row(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys and values of a batch are one tensor: a row takes what the longest takes."""
    most, taken = 400, []
    monkeypatch.setattr(
        "unlearnbench.models.budget.generation_budget", lambda *_: Budget(most, most)
    )
    whole = Layer.make_room

    def watch(self: Layer, key: Any, value: Any, rows: int, room: int) -> None:
        taken.append((rows, rows * room))
        whole(self, key, value, rows, room)

    model = wrap(llama)
    model._find_continuer(model._encode(MIXED[0]), 200)
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


def test_sampling_through_packed_rows_is_that_of_padded_ones(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(0.9, 50, seed=3)
    asked = [Generate(p, p, 12, (), sampling) for p in PROMPTS]
    packed = {a.id: a.text for a in wrap(llama).generate(asked)}
    model = wrap(llama)
    model._continuer = "as if its attention were unusual"
    assert {a.id: a.text for a in model.generate(asked)} == packed


@pytest.mark.parametrize("at", ["run_prefix", "_run_prompts", "_step"])
def test_nothing_is_lost_when_memory_runs_out(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    model = wrap(llama)
    model._find_continuer(model._encode(PROMPTS[0]), 200)
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


def test_a_model_whose_packed_logits_are_wrong_falls_back(
    llama: Any, expected: dict[str, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Continuer._step

    def shifted(self: Continuer, batch: Any, start: int, chosen: Sequence[int]) -> Any:
        return step(self, batch, start + 7, chosen)  # a wrong position

    monkeypatch.setattr(Continuer, "_step", shifted)
    model = wrap(llama)
    assert texts(model, PROMPTS) == decoded(expected, PROMPTS)
    assert "other logits" in str(model._continuer)


def unlike_position(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Continuer._step
    monkeypatch.setattr(
        Continuer, "_step", lambda self, batch, start, chosen: step(self, batch, start + 1, chosen)
    )


def unlike_prompt_position(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Continuer._forward

    def shifted(self: Continuer, cache: Any, ids: Any, places: Any, keep: Any) -> Any:
        moved = isinstance(cache.phase, packed_rows.Packed)
        return forward(self, cache, ids, [place + moved for place in places], keep)

    monkeypatch.setattr(Continuer, "_forward", shifted)


def seen_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row sees the empty place of a longer one."""
    see_another(monkeypatch, 1)


def seen_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    see_another(monkeypatch, -1)


def see_another(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    step = packed_rows.Step

    def changed(lengths: Any, seen: Any) -> Any:
        places = torch.arange(seen.shape[-1])
        return step(lengths, (places[None] <= (lengths + more)[:, None])[:, None, None])

    monkeypatch.setattr(generation, "Step", changed)


def prefix_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    after = packed_rows._after_prefix

    def changed(layer: Any, *rest: Any) -> Any:
        cut = Layer()
        cut.prefix = layer.prefix[0][:, :-1], layer.prefix[1][:, :-1]
        return after(cut, *rest)

    monkeypatch.setattr(packed_rows, "_after_prefix", changed)


def prompt_not_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(layer: Any, query: Any, own: Any, scale: float) -> Any:
        key, value = (
            torch.cat([p[None], o], dim=2) for p, o in zip(layer.prefix, own, strict=True)
        )
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, scale=scale, enable_gqa=True)

    monkeypatch.setattr(packed_rows, "_after_prefix", changed)


FAULTS = [
    unlike_position,
    unlike_prompt_position,
    seen_too_many,
    seen_too_few,
    prefix_cut,
    prompt_not_causal,
]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("precision", ["none", "bnb-int8"])
def test_a_wrong_position_or_mask_shows_in_every_dtype(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    dtype: str,
    fault: Any,
) -> None:
    caplog.set_level(logging.ERROR, "bitsandbytes")
    model = load_at(open_source(str(tiny), LoadOptions()), precision, dtype)
    ids = model._encode(PROMPTS[0])
    with torch.no_grad():
        right = packable.find_continuer(model.network, "cpu", ids)
        fault(monkeypatch)
        wrong = packable.find_continuer(model.network, "cpu", ids)
    assert isinstance(right, Continuer), right
    assert "other logits" in str(wrong)


@pytest.mark.parametrize("first", ["", "<s><s><s>", "aaaa"])
def test_wrong_logits_show_whatever_the_first_prompt_is(
    llama: Any, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Tokens that are all alike attend to the same wherever they stand."""
    step = Continuer._step

    def shifted(self: Continuer, batch: Any, start: int, chosen: Sequence[int]) -> Any:
        return step(self, batch, start + 7, chosen)

    monkeypatch.setattr(Continuer, "_step", shifted)
    model = wrap(llama)
    assert "other logits" in str(model._find_continuer(model._encode(first), 100))


def test_logits_that_are_not_finite_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap(make_kind("llama"))
    model._model.lm_head.weight.data[7] = float("nan")
    assert "NaN" in str(model._find_continuer(model._encode(PROMPTS[0]), 100))
    with pytest.raises(ModelOutputError, match="t at none: the model's logits are NaN"):
        list(model.generate([Generate("t", PROMPTS[0], 4)]))


def test_the_comparison_is_with_the_model_as_given(llama: Any) -> None:
    """What an adapter does around the model, the model inside does not know."""

    class Around(torch.nn.Module):
        config, dtype = llama.config, llama.dtype

        def get_base_model(self) -> Any:
            return llama

        def forward(self, input_ids: Any, use_cache: bool) -> Any:
            output = llama(input_ids=input_ids, use_cache=use_cache)
            output.logits = output.logits.roll(1, -1)
            return output

    ids = make_tokenizer()(PROMPTS[0]).input_ids
    with torch.no_grad():
        assert "other logits" in str(packable.find_continuer(Around(), "cpu", ids))


def test_the_config_is_given_back(llama: Any) -> None:
    before = llama.config._attn_implementation
    texts(wrap(llama), PROMPTS, 3)
    assert llama.config._attn_implementation == before


def test_prompts_that_were_answered_move_no_other(tiny: Path) -> None:
    requests = [Generate(p, p, 8) for p in PROMPTS]
    model = load_at(open_source(str(tiny), LoadOptions()), "none", batch=2)
    whole = {a.id: a for a in model.generate(requests)}
    done = set(PROMPTS[2:5])
    assert {a.id: a for a in model.generate(requests, done)} == {
        k: v for k, v in whole.items() if k not in done
    }


def test_common_prefix_leaves_each_row_a_token() -> None:
    assert common_prefix([[1, 2, 3], [1, 2, 3, 4]]) == 2
    assert common_prefix([[1, 2], [1, 2]]) == 1
    assert common_prefix([[2], [1, 2]]) == 0


def test_the_way_taken_is_said(
    llama: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench.explain")
    texts(wrap(llama), PROMPTS, 2)
    assert "rows without padding, a prefix of" in caplog.text
    monkeypatch.setattr(packable, "_LAYERS", set())
    windowed = make_kind("gemma3")
    texts(wrap(windowed), PROMPTS[:2], 2)
    assert "transformers' generate, padded: it has layers of kind" in caplog.text
