from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizer

from tests.conftest import CORPUS
from tests.models.architectures import Given, make_kind
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Score
from unlearnbench.results import Condition, ConditionOptions

CHARACTERS = ["<s>", "</s>", "<unk>", *sorted({c for text in CORPUS for c in text})]


class Characters(PreTrainedTokenizer):
    """A tokenizer in Python alone: a token is a character."""

    def __init__(self, **options: Any) -> None:
        self._ids = {c: i for i, c in enumerate(CHARACTERS)}
        super().__init__(  # type: ignore[no-untyped-call]
            bos_token="<s>", eos_token="</s>", unk_token="<unk>", **options
        )

    @property
    def vocab_size(self) -> int:
        return len(CHARACTERS)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids)

    def _tokenize(self, text: str, **options: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids.get(token, 2)

    def _convert_id_to_token(self, index: int) -> str:
        return CHARACTERS[index] if index < len(CHARACTERS) else "<unk>"

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens)


def test_a_tokenizer_without_a_fast_implementation_works() -> None:
    model, tokenizer = make_kind("llama"), Characters()
    given: Any = Given(model)
    given.tokenizer = tokenizer
    options = ConditionOptions(bits=32, scheme="as it is", backend="torch")
    condition = Condition(name="none", kind="stored", options=options)
    ours = HFModel(model, given, condition, "fp32", "cpu", None)
    prompts = [CORPUS[n][: 30 + 7 * n] for n in range(4)]
    for answer in ours.generate([Generate(p, p, 12) for p in prompts]):
        ids = torch.tensor([tokenizer(answer.id)["input_ids"]])
        mask = torch.ones_like(ids)
        row = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False)
        new = row[0, ids.shape[1] :].tolist()
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True)
    (scored,) = ours.score([Score("t", prompts[0])])
    assert len(scored.logprobs) == len(tokenizer(prompts[0])["input_ids"]) - 1


def test_a_slow_tokenizer_is_said(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "unlearnbench")
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: Characters())
    monkeypatch.setattr("unlearnbench.checkpoints.checkpoint.check_tokenizer", lambda *_: None)
    open_checkpoint(str(tiny), LoadOptions())
    assert "no fast implementation" in caplog.text
