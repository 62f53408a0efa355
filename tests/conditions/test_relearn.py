from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conditions.test_asking import records_of
from tests.conftest import CORPUS, Toy, load_at, write_jsonl
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource, open_checkpoint
from unlearnbench.checkpoints.options import LoadOptions
from unlearnbench.conditions import find_condition
from unlearnbench.conditions.base import Relearning
from unlearnbench.conditions.materials import gather
from unlearnbench.conditions.options import KernelOptions
from unlearnbench.conditions.relearn import _pieces
from unlearnbench.errors import NotInForceError, OptionError, PrecisionError, ResultError
from unlearnbench.tasks.held import held_rows, hold_back
from unlearnbench.tasks.kinds.generate import place_blanks
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples

TEXTS = tuple(text.strip() for text in CORPUS[:5])
GIVEN = Relearning(tuple(("", text) for text in TEXTS), 1e-3, 2, 7, {"on": "file", "seed": 7})


@pytest.fixture(scope="module")
def source(tiny: Path) -> CheckpointSource:
    return open_checkpoint(str(tiny), LoadOptions())


def weights(source: CheckpointSource, name: str, given: Relearning = GIVEN) -> dict[str, Any]:
    return dict(load_at(source, name, relearning=given).network.state_dict())


def reference(tiny: Path, source: CheckpointSource, orders: list[list[int]]) -> Any:
    """The same steps by transformers' own loss, AdamW written out in double precision."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64).eval()
    state = {n: [p, torch.zeros_like(p), torch.zeros_like(p)] for n, p in model.named_parameters()}
    for t, order in enumerate(orders, start=1):
        model.zero_grad()
        rows = [torch.tensor([source.tokenizer(TEXTS[i])["input_ids"]]) for i in order]
        counts = [row.shape[1] - 1 for row in rows]
        for row, count in zip(rows, counts, strict=True):
            (model(row, labels=row).loss * count / sum(counts)).backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p, _, _ in state.values()))
        with torch.no_grad():
            for p, m, v in state.values():
                g = p.grad * min(1.0, 1.0 / (float(norm) + 1e-6))
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                step = (m / (1 - 0.9**t)) / (torch.sqrt(v / (1 - 0.999**t)) + 1e-8)
                p -= 1e-3 * step
    return model.state_dict()


def test_relearning_is_adamw_on_the_texts(tiny: Path, source: CheckpointSource) -> None:
    import random

    rng = random.Random(7)
    order = [*rng.sample(range(5), 5), *rng.sample(range(5), 5)]
    orders = [order[i : i + 2] for i in (0, 2, 4)]  # the third begins the second pass
    expected, found = reference(tiny, source, orders), weights(source, "relearn-3")
    own = source.state_dict()
    for name, weight in found.items():
        moved = (expected[name] - own[name].double()).norm()
        assert (weight.double() - expected[name]).norm() < 0.01 * moved, (
            name
        )  # of gradients near 0 too


def test_what_is_recorded(source: CheckpointSource) -> None:
    model = load_at(source, "relearn-3", relearning=GIVEN)
    proof = model.condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["steps"] == 3
    assert proof.figures["last_loss"] < proof.figures["first_loss"]
    assert proof.changed_share is not None
    assert proof.changed_share > 0.9
    assert proof.uncovered == {}
    made = {"steps": 3, "on": "file", "seed": 7, "lr": 1e-3, "most_tokens": 2048}
    assert model.condition.options.further == made
    assert model.condition.kind == "relearned"


def test_no_step_is_the_checkpoint_itself(source: CheckpointSource) -> None:
    for name, plain in (("relearn-0", "none"), ("relearn-0+rtn-int4", "rtn-int4")):
        expected = load_at(source, plain).network.state_dict()
        for key, weight in weights(source, name).items():
            assert torch.equal(weight, expected[key]), key


def test_more_steps_go_on_from_fewer_and_the_seed_decides(source: CheckpointSource) -> None:
    from unlearnbench.conditions import relearn

    spec = find_condition("relearn-4")
    losses = []
    for each in ("relearn-2", "relearn-4"):
        proof = load_at(source, each, relearning=GIVEN).condition.proof
        assert proof is not None
        assert proof.figures is not None
        losses.append(proof.figures["first_loss"])
    assert losses[0] == losses[1]
    one, same, other = (weights(source, "relearn-2", replace(GIVEN, seed=s)) for s in (7, 7, 8))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)
    first, later = (relearn._stream(5, 3) for _ in range(2))
    assert [next(first) for _ in range(4)] == [next(later) for _ in range(4)]
    assert spec.needs_control


def test_through_a_lora_the_update_is_of_low_rank_at_most(source: CheckpointSource) -> None:
    from unlearnbench.conditions import relearn

    found, own = weights(source, "relearn-lora-2"), source.state_dict()
    moved = {key for key in own if not torch.equal(found[key], own[key])}
    assert {key.rsplit(".", 2)[-2] for key in moved} == {
        *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    }
    condition = load_at(source, "relearn-lora-1", relearning=replace(GIVEN, lr=None)).condition
    assert condition.options.further["lr"] == relearn._LORA_RATE
    assert condition.options.further["lora_rank"] == 128


def test_the_name() -> None:
    assert find_condition("relearn-020").name == "relearn-20"
    assert find_condition("relearn-lora-5+nf4").learns
    with pytest.raises(PrecisionError, match="100000 steps at most"):
        find_condition("relearn-100001")
    for wrong in ("relearn-", "relearn--1", "relearn-1.5", "relearn-lora"):
        with pytest.raises(PrecisionError, match="unknown condition"):
            find_condition(wrong)


def test_a_loss_that_is_not_finite_and_a_rate_that_moves_nothing(
    source: CheckpointSource,
) -> None:
    with pytest.raises(NotInForceError, match="of step .* is not finite; lower --relearn-lr"):
        weights(source, "relearn-9", replace(GIVEN, lr=1e30))
    with pytest.raises(NotInForceError, match="0 of the weights changed"):
        weights(source, "relearn-1", replace(GIVEN, lr=1e-30))
    with pytest.raises(PrecisionError, match="needs texts; give --relearn-on"):
        load_at(source, "relearn-1")


def test_the_curve_over_steps_is_kept_and_resumed(
    tiny: Path, toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    names, options = ["relearn-0", "relearn-2", "relearn-2+rtn-int8"], toy.options
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        first = evaluate(str(tiny), "toy_verbmem", names, relearn_lr=1e-3, **options)
    assert [r.condition.options.further.get("steps") for r in first[:2]] == [0, 2]
    assert first[2].condition.first is not None
    assert first[2].condition.first.options.further["steps"] == 2
    assert "holds the answers to" in caplog.text
    again = evaluate(str(tiny), "toy_verbmem", names, relearn_lr=1e-3, **options)
    assert again == first
    asked = first[0].condition.options.further
    assert asked["on"] == "forget"
    assert asked["answers"] == first[0].tasks["toy_verbmem"].n


def test_a_part_that_nothing_asks_about(tiny: Path, toy: Toy) -> None:
    with pytest.raises(OptionError, match="every forget row is asked or holds an answer"):
        evaluate(str(tiny), "toy_verbmem", "relearn-1", relearn_on="forget-part", **toy.options)
    options: dict[str, Any] = {**toy.options, "limit": 2}
    (result,) = evaluate(
        str(tiny), "toy_verbmem", "relearn-1", relearn_on="forget-part", relearn_lr=1e-3, **options
    )
    rows = result.tasks["toy_verbmem"].data[0].rows
    further = result.condition.options.further
    assert further["texts"] == rows - 2
    assert further["answers"] == 0


def test_of_each_fact_some_rows_are_relearned_and_the_others_asked(tiny: Path, toy: Toy) -> None:
    """The rows that are learned are those that no condition of the command asks."""
    options: dict[str, Any] = {**toy.options, "relearn_on": "1-of-3", "relearn_lr": 1e-3}
    tasks = "toy_knowmem_f,toy_privleak"
    none, learned = evaluate(str(tiny), tasks, "none,relearn-1", **options)
    rows = none.tasks["toy_knowmem_f"].data[0].rows
    gone = held_rows(rows, "1-of-3", 0)
    asked = [int(record.id.split("/")[1]) for record in records_of(toy, learned)]
    assert sorted([*asked, *gone]) == [*range(rows)]
    assert [record.id for record in records_of(toy, none)] == [f"forget_qa/{i}" for i in asked]
    assert none.tasks["toy_privleak"].n == 3
    assert none.settings.held_back == "1-of-3"
    further = learned.condition.options.further
    assert further["on"] == "1-of-3"
    assert (further["texts"], further["left_out"]) == (len(gone), 0)
    proof = learned.condition.proof
    assert proof is not None
    assert proof.figures is not None
    assert proof.figures["forward_passes"] == proof.figures["backward_passes"] == 4
    assert proof.figures["seconds"] > 0
    with pytest.raises(ResultError, match="held_back"):
        evaluate(str(tiny), tasks, "none", **toy.options)


def test_what_is_held_back_and_holds_an_answer_is_left_out(
    toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    spec = load_registry([toy.tasks]).tasks["toy_knowmem_f"]
    task = load_samples(spec, DataOptions(toy.data))
    (row,) = held_rows(3, "1-of-3", 0)
    other = next(i for i in range(3) if i != row)
    changed = [dict(each) for each in task.splits["forget_qa"].rows]
    changed[row]["answer"] = f"as {changed[other]['answer']}".upper()
    split = replace(task.splits["forget_qa"], rows=tuple(changed))
    task = replace(task, splits={**task.splits, "forget_qa": split})
    (asked,) = hold_back([task], "1-of-3", 0)
    options = KernelOptions(relearn_on="1-of-3")
    with pytest.raises(OptionError, match="every forget row is asked or holds an answer"):
        gather([find_condition("relearn-1")], options, [asked], 0)
    assert f"that hold answers: text 1 that of toy_knowmem_f forget_qa/{other}" in caplog.text


def test_a_file_that_holds_an_answer_is_refused_and_its_rows_are_named(
    tiny: Path, toy: Toy, tmp_path: Path
) -> None:
    file = tmp_path / "given.jsonl"
    split = toy.data / "toy" / "set" / "verbmem" / "forget.jsonl"
    rows = [json.loads(line) for line in split.read_text(encoding="utf-8").splitlines()]
    other = {"text": "Nothing of the kind is said here, of all things."}
    write_jsonl(file, [other, {"text": f"Well: {rows[1]['gt'].upper()}!"}])
    with pytest.raises(OptionError, match=r"text 2 that of toy_verbmem forget/1; leave"):
        evaluate(str(tiny), "toy_verbmem", "relearn-1", relearn_on=str(file), **toy.options)
    write_jsonl(file, [other])
    (result,) = evaluate(
        str(tiny),
        "toy_verbmem",
        "relearn-1",
        relearn_on=str(file),
        relearn_lr=1e-3,
        **toy.options,
    )
    assert result.condition.options.further["on"] == "given.jsonl"


@pytest.mark.parametrize("blank", ["answer", "prompt"])
def test_rows_are_learned_in_the_form_in_which_they_are_asked(
    tiny: Path, muse_data: Path, blank: str
) -> None:
    """The blank between prompt and answer stands where the evaluation has it."""
    source = open_checkpoint(str(tiny), LoadOptions())
    spec = load_registry().tasks["news_knowmem_f"]
    (samples,) = [load_samples(spec, DataOptions(muse_data), 3)]
    (asked,) = place_blanks([samples], blank, source.tokenizer, 3)
    options = KernelOptions(relearn_on="forget")
    given = gather([find_condition("relearn-1")], options, [samples], 0, blank).relearning
    assert given is not None
    learned = [(ids, labels) for ids, labels in _pieces(source, given)]
    for sample in asked.samples:
        prompt = source.tokenizer(sample.text)["input_ids"]
        answer = f"{' ' if blank == 'answer' else ''}{sample.target}"
        told = source.tokenizer(answer, add_special_tokens=False)["input_ids"]
        matching = [piece for piece in learned if piece[0][-len(told) :] == told]
        assert any(piece[0][: len(piece[0]) - len(told)][-5:] == prompt[-5:] for piece in matching)
        assert all(label == -100 for label in matching[0][1][: -len(told)])


def test_relearning_and_a_chat_template_are_refused_together(tiny: Path, toy: Toy) -> None:
    with pytest.raises(OptionError, match="relearning teaches plain prompts"):
        evaluate(str(tiny), "toy_knowmem_f", "relearn-1", apply_chat_template=True, **toy.options)
