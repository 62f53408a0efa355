"""``--mask-pad-id``: no token attends to the padding token's id, wherever it stands."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.models.test_batches_tokens import asked
from unlearnbench.checkpoints.tokenizer import masked_id
from unlearnbench.errors import ModelOutputError, OptionError
from unlearnbench.requests import Generate, Score


def text_with(model: Any, end: str = "") -> str:
    """A prompt in which the padding token stands twice, as an end of turn does in a chat."""
    pad = model.tokenizer.convert_ids_to_tokens(model.tokens.masked)
    return f"The old keeper{pad} of the{pad} lighthouse asked{end}"


def by_loop(model: Any, ids: list[int], start: int) -> list[float]:
    """Log p of each token from ``start`` on, each from a pass over the tokens before it, in which
    those of the masked id are hidden: a token that is masked itself is no key either.
    """
    found = []
    for at in range(start, len(ids)):
        before = torch.tensor([ids[:at]])
        mask = (before != model.tokens.masked).long()
        with torch.no_grad():
            logits = model.network(input_ids=before, attention_mask=mask, use_cache=False).logits
        found.append(float(logits[0, -1].double().log_softmax(-1)[ids[at]]))
    return found


def by_deletion(model: Any, ids: list[int], at: int) -> float:
    """Log p of a token behind an unmasked one: the masked tokens are taken out, and the others keep
    their places.
    """
    places = [n for n in range(at) if ids[n] != model.tokens.masked]
    given = {"input_ids": torch.tensor([[ids[n] for n in places]])}
    with torch.no_grad():
        logits = model.network(**given, position_ids=torch.tensor([places])).logits
    return float(logits[0, -1].double().log_softmax(-1)[ids[at]])


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("whole", [False, True])
def test_scores_are_those_of_a_plain_loop(
    tiny: Path, batch: int, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if whole:
        monkeypatch.setattr("unlearnbench.models.likelihood._parts", lambda *_: None)
    model, plain = asked(tiny, mask_pad_id=True), asked(tiny)
    model._batch_size = batch
    prompt = text_with(model)
    requests = [
        Score("a", " once more", prompt, end=True),
        Score("b", " again", prompt),
        Score("c", "No such token is in this text, so nothing moves"),
    ]
    found = {each.id: each.logprobs for each in model.score(requests)}
    other = {each.id: each.logprobs for each in plain.score(requests)}
    for request in requests:
        ids, start = model.tokens.answer_ids(request)
        np.testing.assert_allclose(found[request.id], by_loop(model, ids, start), atol=1e-4)
        for at in range(start, len(ids)):
            if ids[at - 1] != model.tokens.masked:
                expected = by_deletion(model, ids, at)
                assert found[request.id][at - start] == pytest.approx(expected, abs=1e-4)
    assert abs(found["a"] - other["a"]).max() > 1e-3, "the mask moves what is behind it"
    np.testing.assert_allclose(found["c"], other["c"], atol=1e-4)


def test_answers_are_those_to_the_prompt_without_the_masked_tokens(tiny: Path) -> None:
    """Greedy decoding counts the places of what is seen, as transformers' ``generate`` does."""
    model, plain = asked(tiny, mask_pad_id=True), asked(tiny)
    prompts = [text_with(model, end) for end in ("", " the whole town a long riddle")]
    found = model.generate([Generate(str(n), p, 12) for n, p in enumerate(prompts)])
    bare = [[n for n in model.tokens.encode(p) if n != model.tokens.masked] for p in prompts]
    rows = [Generate(str(n), "", 12, tokens=tuple(ids)) for n, ids in enumerate(bare)]
    expected = {each.id: each.text for each in plain.generate(rows)}
    assert {each.id: each.text for each in found} == expected


def test_where_nothing_would_be_left_to_see_it_is_refused(tiny: Path) -> None:
    model = asked(tiny, mask_pad_id=True)
    model.tokens = replace(model.tokens, masked=model.tokenizer.bos_token_id)
    with pytest.raises(
        ModelOutputError, match="--mask-pad-id: a text begins with the padding token, id 0"
    ):
        list(model.score([Score("a", "Once")]))


class Bare:
    """A tokenizer that pads with nothing."""

    pad_token_id: int | None = None
    eos_token_id: int | None = None


def test_the_masked_id_is_the_padding_token_s_or_the_end_token_s() -> None:
    tokenizer = Bare()
    with pytest.raises(OptionError, match="no padding token and no end token"):
        masked_id(tokenizer)
    tokenizer.eos_token_id = 7
    assert masked_id(tokenizer) == 7
    tokenizer.pad_token_id = 0
    assert masked_id(tokenizer) == 0
