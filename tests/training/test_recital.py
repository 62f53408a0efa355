"""The rule that stops a training, and chunks that are forgotten one after another."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.conftest import CORPUS, write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.checkpoints.find import read_json
from unlearnbench.checkpoints.origin import Training
from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.training import context as context_module
from unlearnbench.training import trainer as trainer_module
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.recital import Recital, Reciter, StopRule, StopWhenForgotten


@dataclass(frozen=True)
class Stub(Reciter):
    said: Any = None

    def __call__(self, model: Any, examples: Any) -> Recital:
        found: Recital = self.said(model, examples)
        return found


def plainly(model: Any, ids: list[int], start: int, n: int) -> tuple[Fraction, Fraction]:
    """EL_n and MA as the paper writes them: every prefix decoded by itself, without a cache."""

    def likeliest(prefix: list[int]) -> int:
        with torch.no_grad():
            return int(model(torch.tensor([prefix]), use_cache=False).logits[0, -1].argmax())

    shares, hits = [], []
    for at in range(start, len(ids)):
        told = list(ids[:at])
        while len(told) < len(ids):
            told.append(likeliest(told))
        said, true = told[at:], ids[at:]
        hits.append(said[0] == true[0])
        if len(true) >= n:
            have = [tuple(said[k : k + n]) for k in range(len(said) - n + 1)]
            want = {tuple(true[k : k + n]) for k in range(len(true) - n + 1)}
            shares.append(Fraction(sum(gram in want for gram in have), len(have)))
    return sum(shares, Fraction(0)) / len(shares), Fraction(sum(hits), len(hits))


@pytest.mark.parametrize("n", [1, 2])
def test_it_is_brute_force_on_a_model(tiny: Path, n: int) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float64)
    model.generation_config.repetition_penalty = 3.0  # has no part in it
    model.train()
    texts, starts = [], [1, 1, 4]
    for seed in range(3):
        torch.manual_seed(seed)
        ids = torch.randint(3, 300, (5,)).tolist()
        with torch.no_grad():
            for at in range(9):  # half of it is what the model would say
                told = int(model(torch.tensor([ids])).logits[0, -1].argmax())
                ids.append(told if at % 4 else int(torch.randint(3, 300, ())))
        texts.append(ids)
    hidden = (IGNORED,) * 4
    examples = [Example(tuple(ids), tuple(ids)) for ids in texts[:2]]
    examples.append(Example(tuple(texts[2]), (*hidden, *texts[2][4:]), is_qa=True, prompt=4))
    found = Reciter(n, 0, ())(model, examples)
    exact = [plainly(model, ids, start, n) for ids, start in zip(texts, starts, strict=True)]
    assert found.el == pytest.approx(float(sum(el for el, _ in exact)) / 3, abs=1e-12)
    assert found.ma == pytest.approx(float(sum(ma for _, ma in exact)) / 3, abs=1e-12)
    assert 0 < found.el < 1
    assert model.training
    assert model.generation_config.repetition_penalty == 3.0


def test_both_have_to_be_at_or_below() -> None:
    rule = StopRule(Reciter(10, 0, ()), Recital(0.05, 0.3), 4)
    cases = {(0.05, 0.3): True, (0.0, 0.0): True, (0.06, 0.1): False, (0.01, 0.31): False}
    assert {case: rule.meets(Recital(*case)) for case in cases} == cases


@pytest.mark.parametrize("reached", [False, True])
def test_a_chunk_that_was_at_its_end_is_measured_once(reached: bool) -> None:
    """Resumed at its last step, it has no step to look behind."""
    looks = []

    def reciter(model: Any, examples: Any) -> Recital:
        looks.append(len(examples))
        return Recital(0.0 if reached else 0.5, 0.0)

    row, control = Example((0, 5), (0, 5)), SimpleNamespace()
    for steps in ([], [1], [2, 4]):
        looks.clear()
        rule = StopRule(replace(Stub(10, 0, ()), said=reciter), Recital(0.1, 0.3), 4)
        stop = StopWhenForgotten(rule, [row] * 3, 2)
        for step in steps:
            stop.on_step_end(None, SimpleNamespace(global_step=step, max_steps=4), control)
            if rule.chunks:
                break
        stop.on_train_end(None, SimpleNamespace(global_step=4, max_steps=4), control)
        (record,) = rule.chunks
        assert (record.sequences, record.reached) == (3, reached)
        assert record.steps == (2 if reached and 2 in steps else 4)
        assert len(looks) == (2 if steps == [2, 4] and not reached else 1)


@pytest.fixture
def short(job: Job, tmp_path: Path) -> Job:
    """Six sequences."""
    write_jsonl(tmp_path / "short.jsonl", [{"text": text[:20]} for text in CORPUS[:6]])
    return replace(job, forget=(str(tmp_path / "short.jsonl"),))


def test_one_chunk_is_the_batch_to_the_bit(short: Job, tmp_path: Path) -> None:
    chunk = go(short, tmp_path / "chunk", "ga", chunk=6, max_steps=None, epochs=2)
    batch = go(short, tmp_path / "batch", "ga", batch_size=6, max_steps=None, epochs=2)
    assert [r.loss for r in chunk.losses] == [r.loss for r in batch.losses]
    assert same(weights(tmp_path / "chunk"), weights(tmp_path / "batch"))
    assert chunk.recipe != batch.recipe


def test_the_second_chunk_begins_where_the_first_ended(short: Job, tmp_path: Path) -> None:
    both = go(short, tmp_path / "both", "ga", chunk=4, max_steps=1)
    assert [(r.stage, r.step) for r in both.losses] == [("unlearn", 1), ("unlearn-2", 1)]
    model = short.model
    for name, texts in (("first", CORPUS[:4]), ("second", CORPUS[4:6])):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text[:20]} for text in texts])
        part = replace(short, model=model, forget=(str(tmp_path / f"{name}.jsonl"),))
        seed = 0 if name == "first" else 10_007
        go(part, tmp_path / name, "ga", batch_size=len(texts), max_steps=1, seed=seed)
        model = str(tmp_path / name)
    assert same(weights(tmp_path / "both"), weights(tmp_path / "second"))


def test_chunks_of_one_size_are_held_by_other_retain_texts(
    short: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first by those that it would have alone."""
    seen: list[list[Example]] = []

    def train(context: Any, model: Any, stage: Any, *given: Any) -> Any:
        seen.append([item["retain"][0] for item in stage.schedule.items])
        return model

    monkeypatch.setattr(context_module, "train", train)
    go(short, tmp_path / "both", "ga_gdr", chunk=3, max_steps=2)
    go(short, tmp_path / "one", "ga_gdr", batch_size=3, max_steps=2)
    first, second, alone = seen
    assert first != second
    assert sorted(first, key=str) != sorted(second, key=str)
    assert len(first) == len(alone) == 6


@pytest.fixture
def stopping(short: Job, tmp_path: Path) -> Job:
    """A training of two chunks with unseen texts beside."""
    write_jsonl(tmp_path / "unseen.jsonl", [{"text": text[:20]} for text in CORPUS[10:12]])
    return replace(short, unseen=(str(tmp_path / "unseen.jsonl"),))


OPTIONS: dict[str, Any] = {
    "chunk": 4,
    "stop_el": 1,
    "max_steps": 4,
    "max_length": 48,
    "lr": 3e-4,
    "save_steps": 1,
}


def test_it_stops_by_the_rule_and_says_so(stopping: Job, tmp_path: Path) -> None:
    training = go(stopping, tmp_path / "out", "ga", **OPTIONS)
    assert Training.model_validate(read_json(tmp_path / "out/unlearning.json")) == training
    rule = training.stopping
    assert rule is not None
    assert (rule.n, rule.rows) == (1, training.sequences["unseen"])
    steps = dict.fromkeys(("unlearn", "unlearn-2"), 0)
    for loss in training.losses:
        steps[loss.stage] += 1
    assert [chunk.steps for chunk in rule.chunks] == list(steps.values())
    for chunk in rule.chunks:
        assert chunk.reached == (chunk.el <= rule.el and chunk.ma <= rule.ma)
        assert chunk.reached or chunk.steps == 4
    assert "unseen" in {part.role for part in training.data}


@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 6])
def test_interrupted_and_resumed_gives_the_same_weights(
    stopping: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """At the sixth step the first chunk is at its end already, and no step of it is made again."""

    class Stop(BaseException):
        pass

    if at == 6:
        monkeypatch.setattr(StopRule, "meets", lambda self, found: False)
    whole = go(stopping, tmp_path / "whole", "ga", **OPTIONS)
    step, seen = trainer_module.UnlearnTrainer.training_step, []

    def interrupt(self: Any, *given: Any) -> Any:
        seen.append(1)
        if len(seen) == at:
            raise Stop
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.UnlearnTrainer, "training_step", interrupt)
        with pytest.raises(Stop):
            go(stopping, tmp_path / "parts", "ga", **OPTIONS)
    resumed = go(replace(stopping, resume=True), tmp_path / "parts", "ga", **OPTIONS)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert resumed.stopping == whole.stopping
    assert [r.loss for r in resumed.losses] == [r.loss for r in whole.losses]


@pytest.mark.parametrize(
    ("method", "change", "says"),
    [
        ("ga", {"stop_el": 3}, "--stop-el compares with unseen texts; give --unseen"),
        ("ga", {"stop_el": 3, "spans": "entities"}, "--stop-el looks at whole texts, and --spans"),
        ("tv", {"chunk": 3}, "--chunk is for losses on the forget set; tv has none"),
        ("ga", {"chunk": 4, "lora_rank": 2}, "--chunk: an adapter would be merged after each"),
    ],
)
def test_where_it_means_nothing_it_is_refused(
    job: Job, tmp_path: Path, method: str, change: dict[str, Any], says: str
) -> None:
    spans = change.pop("spans", None)
    with pytest.raises(OptionError, match=says):
        go(replace(job, spans=spans), tmp_path / "out", method, **change)


def test_unseen_texts_are_long_enough_and_no_tasks(stopping: Job, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--stop-el 99: no unseen text has 99 tokens after the"):
        go(stopping, tmp_path / "out", "ga", stop_el=99)
    assert not (tmp_path / "out").exists()
    asked = replace(stopping, retain=(), out=tmp_path / "out")
    with pytest.raises(OptionError, match="ga has no unseen term; leave --unseen out"):
        unlearn(asked, "ga")
    told = asked.options.model_copy(update={"stop_el": 3})
    with pytest.raises(OptionError, match="--unseen task:demo_verbmem: a task's rows are what"):
        unlearn(replace(asked, unseen=("task:demo_verbmem",), options=told), "ga")
