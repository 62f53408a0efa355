"""A continuous suffix: found by the gradient's sign, asked by ids behind the vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conditions.test_asking import records_of, toy_task
from tests.conftest import Toy, load_at
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.embedding import _unpacked, add_rows, ask
from unlearnbench.errors import OptionError, PrecisionError
from unlearnbench.models.base import Delegate
from unlearnbench.requests import Generate, Generated
from unlearnbench.results import Settings


@pytest.fixture
def model(tiny: Path) -> Any:
    return load_at(open_checkpoint(str(tiny), LoadOptions()), "none")


def test_it_is_found_recorded_and_asked(tiny: Path, toy: Toy, model: Any) -> None:
    (result,) = evaluate(str(tiny), "toy_knowmem_f", "embedding-6", **toy.options)
    searches = result.tasks["toy_knowmem_f"].searches
    assert searches is not None
    for each in searches:
        assert each.loss < each.loss_before
        assert each.suffix is None
        assert each.sha256 is not None
        n = len(each.searched_on)
        assert (each.steps, each.backward_passes, each.forward_passes) == (6, 6 * n, 7 * n)
    asking, kept = ask(find_condition("embedding-6"), toy_task(toy)), list[Any]()
    asking.search(model, None, kept.append)
    assert [f.sha256 for f in asking.found] == [f.sha256 for f in searches]
    settings = Settings(protocol="muse", dtype="fp32", device="cpu", seed=0, ppl_lower=False)
    plain = load_at(open_checkpoint(str(tiny), LoadOptions()), "none").network
    table: Any = plain.get_input_embeddings().weight
    values = [each["value"] for each in kept[-1]["searches"]]
    size = len(table)
    for record, sample in zip(records_of(toy, result), toy_task(toy).samples, strict=True):
        assert record.asked is not None
        assert record.asked.prompt is None
        assert record.asked.search is not None
        assert record.id not in searches[record.asked.search].searched_on
        ((request,),) = asking.requests(sample, settings)
        assert isinstance(request, Generate)
        rows = torch.cat([_unpacked(value, len(table[0])) for value in values])
        parts = [table[t] if t < size else rows[t - size] for t in request.tokens]
        embedded = torch.stack(parts)[None].detach()
        found: list[int] = []  # greedy, by transformers' own forward alone
        for _ in range(8):
            with torch.no_grad():
                token = int(plain(inputs_embeds=embedded).logits[0, -1].argmax())
            if token == 1:
                break
            found.append(token)
            embedded = torch.cat([embedded, table[token].detach()[None, None]], dim=1)
        answer = Generated("x", model.tokens.decode(found), len(found))
        text = answer.text.split("\n\n")[0].split("Question:")[0]
        assert record.output == text


def test_the_vocabulary_answers_as_before(model: Any) -> None:
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        before = model.network(input_ids=ids).logits
        size = model.network.config.vocab_size
        own = model.network.get_input_embeddings()
        add_rows(model.network, size, [own(torch.tensor([4, 5]))])
        assert model.network(input_ids=ids).logits.equal(before)
        same = torch.tensor([[3, size, size + 1]])
        assert model.network(input_ids=same).logits.equal(before)


def test_a_model_that_does_not_look_up_is_refused(
    toy: Toy, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearnbench.conditions.embedding.add_rows", lambda *_: None)
    own = model.network.get_input_embeddings()
    forward = own.forward
    size = model.network.config.vocab_size
    own.forward = lambda ids: forward(ids.masked_fill(ids >= size, 7))
    asking = ask(find_condition("embedding-2"), toy_task(toy))
    with pytest.raises(PrecisionError, match="by a table alone"):
        asking.search(model, None, lambda _: None)


def test_another_engine_is_refused(toy: Toy, model: Any) -> None:
    asking = ask(find_condition("embedding-2"), toy_task(toy))
    with pytest.raises(OptionError, match="use --backend hf"):
        asking.search(Delegate(model), None, lambda _: None)
