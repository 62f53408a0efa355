"""The search for a suffix: a planted trigger is found, the loss never rises, all repeats."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests.conditions.test_asking import records_of, toy_task
from tests.conftest import Toy, make_tokenizer, write_jsonl
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import file_of, find_condition
from unlearnbench.conditions.searching import Progress, Searching
from unlearnbench.conditions.suffix import _Suffix, allowed_tokens, ask, candidates
from unlearnbench.conditions.suffix_loss import SuffixLoss
from unlearnbench.errors import PrecisionError, ResultError
from unlearnbench.models.batches import Tokens
from unlearnbench.results import SearchFound
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples


class Bag(nn.Module):
    """What follows is what all tokens before it ask for: one, the trigger, asks for the answer."""

    def __init__(self, size: int, trigger: int, answers: list[int]) -> None:
        super().__init__()
        self.table = nn.Embedding(size, 16)
        self.head = nn.Linear(16, size, bias=False)
        with torch.no_grad():
            draws = torch.Generator().manual_seed(0)
            self.table.weight.copy_(0.1 * torch.randn(size, 16, generator=draws))
            self.head.weight.copy_(0.1 * torch.randn(size, 16, generator=draws))
            self.table.weight[trigger] = 0
            self.table.weight[trigger, 0] = 30.0
            self.head.weight[answers, 0] = 1.0

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, **_: Any) -> Any:
        found = self.table(input_ids) if inputs_embeds is None else inputs_embeds
        return SimpleNamespace(logits=self.head(found.cumsum(dim=1)), past_key_values=None)


TRIGGER = "x"


@pytest.fixture
def planted() -> Any:
    tokenizer = make_tokenizer()
    size = len(tokenizer)
    (trigger,) = tokenizer.encode(TRIGGER, add_special_tokens=False)
    every = [tokenizer.encode(f"gate {n}", add_special_tokens=False) for n in range(3)]
    answers = [token for each in every for token in each]
    tokens = Tokens(tokenizer, SimpleNamespace(vocab_size=size), (1,), 1)
    return SimpleNamespace(network=Bag(size, trigger, answers), tokens=tokens)


def run(toy: Toy, model: Any, name: str = "suffix-30", **state: Any) -> tuple[Any, list[Any]]:
    asking, kept = ask(find_condition(name), toy_task(toy)), list[Any]()
    asking.search(model, state or None, kept.append)
    return asking, kept


def test_a_planted_trigger_is_found(toy: Toy, planted: Any) -> None:
    asking, _ = run(toy, planted)
    for found in asking.found:
        assert TRIGGER in found.suffix
        assert found.loss < 0.5 * found.loss_before
        assert (found.steps, found.backward_passes) == (30, 30 * len(found.searched_on))
        assert found.forward_passes <= len(found.searched_on) * (1 + 30 * 33)


def test_the_best_so_far_never_rises_and_all_repeats(
    toy: Toy, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses: dict[int, list[float]] = {}
    step = _Suffix.step

    def watched(self: _Suffix, loss: SuffixLoss, number: int, now: Progress) -> None:
        step(self, loss, number, now)
        losses.setdefault(number, []).append(now.loss)

    monkeypatch.setattr(_Suffix, "step", watched)
    first, _ = run(toy, planted)
    for each in losses.values():
        assert len(each) == 30
        assert each == sorted(each, reverse=True)
        assert each[-1] < each[0]
    second, _ = run(toy, planted)
    timeless = [[f.model_copy(update={"seconds": 0}) for f in a.found] for a in (first, second)]
    assert timeless[0] == timeless[1]
    other, _ = run(toy, planted, "suffix-30-seed1")
    assert [f.suffix for f in other.found] != [f.suffix for f in first.found]


@pytest.mark.slow
@pytest.mark.ci
def test_an_interrupted_search_goes_on_to_the_same_end(
    toy: Toy, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlearnbench.conditions.searching._KEEP_EVERY", 0.0)
    whole, kept = run(toy, planted)
    for state in (kept[3], kept[len(kept) // 2], kept[-1]):
        again, _ = run(toy, planted, **state)
        timeless = [[f.model_copy(update={"seconds": 0}) for f in a.found] for a in (whole, again)]
        assert timeless[0] == timeless[1]


def test_what_both_searches_found_is_not_searched_for_again(
    toy: Toy, planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, kept = run(toy, planted)

    def no_more(*_: object) -> None:
        raise AssertionError("begun anew")

    for name in ("begin", "step"):
        monkeypatch.setattr(type(whole), name, no_more)
    again, states = run(toy, planted, **kept[-1])
    assert again.found == whole.found
    assert all(len(state["searches"]) == 2 for state in states)


def test_the_slopes_are_the_gradient_by_one_hot(toy: Toy, planted: Any) -> None:
    asking = ask(find_condition("suffix"), toy_task(toy))
    assert isinstance(asking, Searching)
    loss = SuffixLoss(planted, asking.searched[1], "here")
    allowed = allowed_tokens(loss)
    texts = [planted.tokens.decode([token]) for token in range(len(allowed))]
    assert not allowed[[0, 1]].any()  # begin and end
    assert all(text.isprintable() for text, fit in zip(texts, allowed, strict=True) if fit)
    table = planted.network.table.weight
    with torch.enable_grad():
        ids = torch.tensor([*loss.first])
        hot = nn.functional.one_hot(ids, len(table)).float().requires_grad_()
        losses = []
        for row in loss.rows:
            parts = [table[row.head], hot @ table, table[[*row.read, *row.answer]]]
            logits = planted.network(inputs_embeds=torch.cat(parts)[None]).logits[0]
            log = logits[-1 - len(row.answer) : -1].log_softmax(-1)
            losses.append(-log[range(len(row.answer)), row.answer].mean())
        (slopes,) = torch.autograd.grad(torch.stack(losses).mean(), hot)
    _, gradient = loss.with_gradient(table[ids].detach())
    best = candidates(loss, gradient, allowed, 5)
    wanted = slopes.masked_fill(~allowed, float("inf")).topk(5, largest=False).indices
    assert best.tolist() == wanted.tolist()


def test_no_question_is_asked_with_a_suffix_that_saw_it(tiny: Path, toy: Toy) -> None:
    rows = [{"question": f"Which gate is {n}?", "answer": f"gate {n}"} for n in range(3)]
    write_jsonl(toy.data / "toy/set/knowmem/forget_qa.jsonl", rows)
    (result,) = evaluate(str(tiny), "toy_knowmem_f,toy_verbmem", "suffix-2", **toy.options)
    task = result.tasks["toy_knowmem_f"]
    assert task.searches is not None
    seen = [{*each.searched_on} for each in task.searches]
    assert not seen[0] & seen[1]
    assert len(seen[0] | seen[1]) == 3
    for record in records_of(toy, result):
        assert record.asked is not None
        assert record.asked.search is not None
        assert record.id not in seen[record.asked.search]
        before, after = record.prompt[: -len("\nAnswer: ")], "\nAnswer: "
        suffix = task.searches[record.asked.search].suffix
        assert record.asked.prompt == f"{before}{suffix} {after}"
    assert result.condition.options.further == {
        **{"steps": 2, "seed": 0, "length": 10, "width": 32, "top": 64},
        **{"questions": 8, "target_tokens": 16},
    }
    assert evaluate(str(tiny), "toy_knowmem_f,toy_verbmem", "suffix-2", **toy.options) == [result]


@pytest.mark.parametrize("name", ["suffix-2-by3", "embedding-2-by3-seed1"])
def test_rows_on_one_subject_stay_on_one_side(toy: Toy, name: str) -> None:
    rows = [{"question": f"Which gate is {n}?", "answer": f"gate {n}"} for n in range(11)]
    write_jsonl(toy.data / "toy/set/knowmem/forget_qa.jsonl", rows)
    spec = find_condition(name)
    assert spec.options["rows_of_subject"] == 3
    task = load_samples(
        load_registry([toy.tasks]).tasks["toy_knowmem_f"], DataOptions(toy.data, allow_drift=True)
    )
    asking: Any = file_of(spec).ask(spec, task)
    halves = [{int(n.split("/")[1]) for n, own in asking.half.items() if own == i} for i in (0, 1)]
    subjects = [{at // 3 for at in half} for half in halves]
    assert not subjects[0] & subjects[1]
    assert halves[0] | halves[1] == {*range(11)}
    assert all(subjects)
    searched = [{int(q.id.split("/")[1]) for q in part} for part in asking.searched]
    assert all(seen <= half for seen, half in zip(searched, halves, strict=True))


def test_a_suffix_is_searched_on_the_target_and_asked_of_the_checkpoint(
    tiny: Path, toy: Toy, tmp_path: Path
) -> None:
    """It is the suffix that the target's own search finds."""
    source = open_checkpoint(str(tiny), LoadOptions())
    other, target = source.model(), tmp_path / "target"
    draws = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=draws))
    other.save_pretrained(target)
    source.tokenizer.save_pretrained(target)
    (theirs,) = evaluate(str(target), "toy_knowmem_f", "suffix-3", **toy.options)
    options = {**toy.options, "target_model": str(target)}
    ours = evaluate(str(tiny), "toy_knowmem_f", "suffix-3,suffix-3-target+int8", **options)
    own, found = (result.tasks["toy_knowmem_f"].searches or () for result in (ours[0], ours[1]))
    expected = theirs.tasks["toy_knowmem_f"].searches or ()
    assert [f.suffix for f in found] == [f.suffix for f in expected]
    assert [f.loss for f in found] == [f.loss for f in expected]
    assert [f.loss for f in found] != [f.loss for f in own]
    first = ours[1].condition.first
    assert first is not None
    assert first.options.further["target_sha256"] == theirs.checkpoint.weights_sha256
    for record in records_of(toy, ours[1]):
        assert record.asked is not None
        assert record.asked.search is not None
        assert str(found[record.asked.search].suffix) in str(record.asked.prompt)
    with pytest.raises(PrecisionError, match="searched on the target; give --target-model"):
        evaluate(str(tiny), "toy_knowmem_f", "suffix-3-target", **toy.options)


def test_a_budget_bounds_the_search_and_is_recorded(tiny: Path, toy: Toy, planted: Any) -> None:
    (result,) = evaluate(str(tiny), "toy_knowmem_f", "suffix-9", **toy.options, budget=200)
    assert result.condition.options.further["budget"] == 200
    task = result.tasks["toy_knowmem_f"]
    for each in task.searches or ():
        assert each.steps < 9
        assert 0 < each.forward_passes <= 200
    with pytest.raises(ResultError, match="option budget is 200 there and 300 here"):
        evaluate(str(tiny), "toy_knowmem_f", "suffix-9", **toy.options, budget=300)
    with pytest.raises(PrecisionError, match="--budget 10: suffix-50 takes 68 forward passes"):
        evaluate(str(tiny), "toy_knowmem_f", "suffix", **toy.options, budget=10)
    with pytest.raises(PrecisionError, match="--budget bounds searches, and none"):
        evaluate(str(tiny), "toy_knowmem_f", "none,prefix", **toy.options, budget=100)


def test_a_search_that_was_stopped_goes_on(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it kept stands in the run folder, is removed with the journal, and is no one's edit."""
    monkeypatch.setattr("unlearnbench.conditions.searching._KEEP_EVERY", 0.0)
    (whole,) = evaluate(str(tiny), "toy_knowmem_f", "suffix-3", **toy.options)
    again = {**toy.options, "output": toy.out.parent / "again"}
    own = SuffixLoss.of_ids
    calls = []

    def stopping(self: SuffixLoss, suffixes: Any) -> list[float]:
        calls.append(len(suffixes))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return own(self, suffixes)

    monkeypatch.setattr(SuffixLoss, "of_ids", stopping)
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(tiny), "toy_knowmem_f", "suffix-3", **again)
    (kept,) = again["output"].rglob("*.search.json")
    content = kept.read_bytes()
    kept.write_bytes(content.replace(b'"steps": 2', b'"steps": 3'))
    with pytest.raises(ResultError, match=r"search\.json: damaged or changed"):
        evaluate(str(tiny), "toy_knowmem_f", "suffix-3", **again)
    kept.write_bytes(content)
    (resumed,) = evaluate(str(tiny), "toy_knowmem_f", "suffix-3", **again)
    assert not [*again["output"].rglob("*.search.json")]

    def timeless(found: Any) -> list[SearchFound]:
        return [f.model_copy(update={"seconds": 0}) for f in found.tasks["toy_knowmem_f"].searches]

    assert timeless(resumed) == timeless(whole)
    assert records_of(toy, whole) == records_of(
        SimpleNamespace(out=again["output"]),  # type: ignore[arg-type]
        resumed,
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("suffix-0", "use 1 to 100000 steps"),
        ("suffix-100001", "use 1 to 100000 steps"),
        ("suffix-05", "unknown condition"),
        ("suffix-5-seed0", "unknown condition"),
        ("suffix-5-by1", "use 2 to 1000 rows for a subject"),
        ("suffix-5-seed1-by2", "unknown condition"),
        ("embedding-5-target", "unknown condition"),
        ("embedding-0", "use 1 to 100000 steps"),
        ("embedding-x", "unknown condition"),
    ],
)
def test_numbers_out_of_bounds(name: str, said: str) -> None:
    with pytest.raises(PrecisionError, match=said):
        find_condition(name)


def test_one_question_is_refused(tiny: Path, toy: Toy) -> None:
    with pytest.raises(PrecisionError, match="toy_knowmem_f has one question"):
        evaluate(str(tiny), "toy_knowmem_f", "suffix", **toy.options, limit=1)
    with pytest.raises(PrecisionError, match="toy_knowmem_f has one subject"):
        evaluate(str(tiny), "toy_knowmem_f", "suffix-2-by9", **toy.options)
