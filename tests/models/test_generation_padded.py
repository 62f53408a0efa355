from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.models.architectures import PROMPTS, make_kind, texts, wrap
from unlearnbench.models import packable
from unlearnbench.requests import Generate, Sampling


def test_sampling_through_packed_rows_is_that_of_padded_ones(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(0.9, 50, seed=3)
    asked = [Generate(p, p, 12, (), sampling) for p in PROMPTS]
    packed = {a.id: a.text for a in wrap(llama).generate(asked)}
    model = wrap(llama)
    model._continuer = "as if its attention were unusual"
    assert {a.id: a.text for a in model.generate(asked)} == packed


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
