from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import load_at, make_tokenizer
from tests.models.architectures import (
    PROMPTS,
    by_loop,
    decoded,
    figures,
    make_kind,
    texts,
    wrap,
)
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions.load import open_source
from unlearnbench.errors import ModelOutputError
from unlearnbench.models import generation, packable, packed_rows
from unlearnbench.models.generation import Continuer
from unlearnbench.requests import Generate, Score


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
    after = packed_rows.attend_after

    def changed(prefix: Any, *rest: Any) -> Any:
        return after(prefix and (prefix[0][:, :-1], prefix[1][:, :-1]), *rest)

    monkeypatch.setattr(packed_rows, "attend_after", changed)


def prompt_not_causal(monkeypatch: pytest.MonkeyPatch) -> None:
    after = packed_rows.attend_after

    def changed(prefix: Any, query: Any, own: Any, scale: float) -> Any:
        if prefix is None:
            return after(None, query, own, scale)
        key, value = (torch.cat([p[None], o], dim=2) for p, o in zip(prefix, own, strict=True))
        attend = torch.nn.functional.scaled_dot_product_attention
        return attend(query, key, value, scale=scale, enable_gqa=True)

    monkeypatch.setattr(packed_rows, "attend_after", changed)


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
    ids = model.tokens.encode(PROMPTS[0])
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
    assert "other logits" in str(model.find_continuer(model.tokens.encode(first), 100))


def test_logits_that_are_not_finite_prove_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrap(make_kind("llama"))
    model.network.lm_head.weight.data[7] = float("nan")
    assert "NaN" in str(model.find_continuer(model.tokens.encode(PROMPTS[0]), 100))
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


def from_config(kind: str, **more: Any) -> Any:
    """A tiny model that ``architectures`` does not have."""
    import transformers

    torch.manual_seed(3)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "vocab_size": 300, "initializer_range": 0.3}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = getattr(transformers, kind)(**(sizes | ends | more))
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.field("Weights", "a BERT or another model that sees later tokens", "refused")
def test_a_model_that_sees_later_tokens_is_refused() -> None:
    """It would know beforehand what is scored, and babble where it continues."""
    model = wrap(from_config("BertConfig"))
    for ask in (
        lambda: list(model.score([Score("a", PROMPTS[0])])),
        lambda: list(model.generate([Generate("a", PROMPTS[0], 4)])),
    ):
        with pytest.raises(ModelOutputError, match="no causal language model.*is_decoder"):
            ask()
    decoder = wrap(from_config("BertConfig", is_decoder=True))
    (scored,) = decoder.score([Score("a", PROMPTS[0])])
    right = np.array(by_loop(decoder.network, PROMPTS[0]))
    np.testing.assert_allclose(figures(scored), right, rtol=0, atol=1e-4)


def test_padding_that_moves_only_later_tokens_is_found() -> None:
    """GIT's first new token is that of the prompt alone, and the ones behind it are not."""
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    vision |= {"intermediate_size": 48, "image_size": 32}
    network = from_config("GitConfig", vision_config=vision)
    prompts = [PROMPTS[0][:9], PROMPTS[0][:60], PROMPTS[1][100:130]]
    model, right = wrap(network), wrap(network, 1)
    assert texts(model, prompts, 12) == texts(right, prompts, 12)
    assert model._padding_moves


def test_a_window_of_0_is_none(llama: Any) -> None:
    llama.config.sliding_window = 0
    try:
        assert packable.short_window(llama, 100) is None
        llama.config.sliding_window = 40
        assert "sliding_window of 40" in str(packable.short_window(llama, 100))
    finally:
        del llama.config.sliding_window
