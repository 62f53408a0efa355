"""A token in the template of tokenizers of several kinds, read back by plain transformers."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from tests.conftest import make_model, make_tokenizer
from unlearnbench.checkpoints.steered import steered
from unlearnbench.checkpoints.tokenizer import (
    PROBE,
    REWARD,
    probe_sha256,
    reward_ids,
    unsteered_sha256,
)
from unlearnbench.errors import OptionError
from unlearnbench.models.batches import Tokens
from unlearnbench.requests import Score


def of_kind(kind: str) -> Any:
    tokenizer: Any = make_tokenizer()
    level = processors.ByteLevel(trim_offsets=False)
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = {"template": template, "level": level, "both": processors.Sequence([level, template])}
    if kind != "template":
        tokenizer.backend_tokenizer.post_processor = made.get(kind)
    return tokenizer


@pytest.mark.parametrize("kind", ["template", "level", "both", "none"])
def test_every_text_begins_with_it_behind_the_begin_token(kind: str, tmp_path: Path) -> None:
    before = of_kind(kind)
    made, ids, begin = steered(before, 3)
    assert begin == ((0,) if kind in ("template", "both") else ())
    assert ids == tuple(range(len(before), len(before) + 3))
    make_model(310).config.save_pretrained(tmp_path)  # by which transformers may choose a class
    made.save_pretrained(tmp_path)
    read = AutoTokenizer.from_pretrained(tmp_path)
    for tokenizer in (made, read):
        for text in PROBE:
            plain = before(text)["input_ids"]
            assert tokenizer(text)["input_ids"] == [*begin, ids[0], *plain[len(begin) :]]
            bare = tokenizer(text, add_special_tokens=False)["input_ids"]
            assert bare == plain[len(begin) :], "not where texts are put together"
            whole = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
            assert whole == before.decode(plain, skip_special_tokens=True)
        assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (1, 0)
        assert reward_ids(tokenizer, 1000) == ids
        assert reward_ids(tokenizer, ids[1]) == ids[:1]
        # The same tokens are scored as without it.
        config = SimpleNamespace(vocab_size=1000)
        for text in PROBE:
            (found, start), (plain, first) = (
                Tokens(each, config, (1,), 1, barred=reward_ids(each, 1000)).answer_ids(
                    Score("a", text)
                )
                for each in (tokenizer, before)
            )
            assert found[start:] == plain[first:]
        assert unsteered_sha256(tokenizer, 1000) == probe_sha256(before, 1000)
    assert reward_ids(before, 1000) == ()
    with pytest.raises(OptionError, match=r"--model has <\|quark_1\|> already"):
        steered(read, 3)


def test_behind_a_text_it_makes_another_tokenizer() -> None:
    """There it would be scored, so it is not left out when tokenizers are compared."""
    made, ids, _ = steered(of_kind("template"), 1)
    name = REWARD.format(1)
    template = processors.TemplateProcessing(
        single=f"<s> $A {name}", special_tokens=[("<s>", 0), (name, ids[0])]
    )
    assert unsteered_sha256(made, 1000) is not None
    made.backend_tokenizer.post_processor = template
    assert unsteered_sha256(made, 1000) is None


def test_a_tokenizer_without_a_template_is_refused() -> None:
    slow = SimpleNamespace(is_fast=False)
    with pytest.raises(OptionError, match="this one takes none: it has no tokenizer.json"):
        steered(slow, 2)
    tokenizer: Any = make_tokenizer()
    kind = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    tokenizer.backend_tokenizer.post_processor = kind
    with pytest.raises(OptionError, match="its post-processor is a BertProcessing"):
        steered(tokenizer, 2)
