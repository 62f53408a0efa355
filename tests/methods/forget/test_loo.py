"""Leave-one-out ensemble: who is asked about what, and whole trainings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import CORPUS, MakeCheckpoint, write_jsonl
from tests.methods.forget.helpers import drawn, gradient, loss, part
from tests.training.helpers import same, weights
from unlearnbench.errors import MetricError, OptionError
from unlearnbench.methods import find_method
from unlearnbench.methods.forget.loo import LooOptions, deal
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.training.context import TrainerContext
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.trainer import UnlearnTrainer


def texts(*numbers: int) -> tuple[Example, ...]:
    rows = [Example((n, n + 1), (n, n + 1), document=at) for at, n in enumerate(numbers)]
    return tuple(rows)


def test_texts_are_dealt_and_equal_ones_and_pieces_stay_together() -> None:
    forget, retain = texts(1, 2, 3, 4, 5, 1), texts(11, 12, 13, 2, 14)
    forget += (Example((77, 78), (77, 78), document=2),)  # a second piece of 3
    owners, shards = deal(forget, retain, LooOptions(loo_shards=3), seed=0)
    assert sorted(example.ids for shard in shards for example in shard) == sorted(
        example.ids for example in (*forget, *retain)
    )
    assert owners[0] == owners[5], "equal"
    assert owners[2] == owners[6], "of one document"
    found = {e.ids: n for n, shard in enumerate(shards) for e in shard}
    assert [found[e.ids] for e in forget] == owners
    assert len({(e.ids, n) for n, shard in enumerate(shards) for e in shard}) == len(found)
    assert [len({e.document for e in s if e in retain}) for s in shards] != [4, 0, 0]
    assert deal(forget, retain, LooOptions(loo_shards=3), seed=0) == (owners, shards)
    others = [deal(forget, retain, LooOptions(loo_shards=3), seed=s)[0] for s in range(1, 5)]
    assert any(other != owners for other in others), "by the seed"


def test_all_forget_texts_in_one_shard_leaves_small_retrained_models() -> None:
    options = LooOptions(loo_shards=3, loo_sharding="together")
    forget, retain = texts(1, 2, 3), texts(2, 11, 12, 13, 14)
    owners, shards = deal(forget, retain, options, seed=0)
    assert owners == [0, 0, 0]
    assert [e.ids for e in shards[0]] == [(1, 2), (2, 3), (3, 4), (2, 3)], "and what equals one"
    assert sorted(map(len, shards[1:])) == [2, 2]
    with pytest.raises(OptionError, match="--loo-shards 6 together: there are too few"):
        deal(forget, retain, replace(options, loo_shards=6), seed=0)


def test_two_shards_are_distillation_of_the_other_teacher() -> None:
    given, other = part(drawn(1)), drawn(2).detach()
    learned = given.labels[:, 1:] != IGNORED
    probs = other[:, :-1][learned].softmax(-1)
    ids = torch.arange(probs.shape[1]).expand_as(probs)
    soft = {"ids": ids, "probs": probs, "rest": torch.zeros(len(probs), dtype=torch.float64)}
    made = replace(given, soft=soft)
    p = given.logits[:, :-1][learned].log_softmax(-1)
    kl = (probs * (probs.log() - p)).sum() / given.all_tokens
    assert loss("loo", made).item() == pytest.approx(kl.item(), abs=1e-12)
    found = gradient("loo", made)
    assert torch.allclose(found[:, :-1][learned], (p.exp() - probs) / given.all_tokens, atol=1e-12)
    assert found[:, :-1][~learned].abs().max() == 0
    assert found[:, -1].abs().max() == 0
    with pytest.raises(OptionError, match="needs what teachers say"):
        loss("loo", given)


@pytest.fixture
def asked(job: Job, tmp_path: Path, make_checkpoint: MakeCheckpoint) -> Job:
    write_jsonl(tmp_path / "some.jsonl", [{"text": text} for text in CORPUS[:6]])
    short = job.options.model_copy(update={"max_steps": 2, "batch_size": 2})
    base = str(make_checkpoint("base"))
    forget = (str(tmp_path / "some.jsonl"),)
    return replace(job, forget=forget, base=base, options=short, out=tmp_path / "out")


KNOBS: dict[str, Any] = {"loo_shards": 3, "teacher_epochs": 1.0, "teacher_lr": 1e-3}


def test_a_teacher_that_saw_a_text_is_never_asked_about_it(
    asked: Job, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would answer NaN, which is refused."""
    descend, measure, seen = TrainerContext.descend, TrainerContext.measure, list[int]()

    def poisoned(self: Any, model: Any, examples: Sequence[Example], *given: Any, **o: Any) -> Any:
        teacher: Any = descend(self, model, examples, *given, **o)
        known = {example.ids for example in examples}

        def spoil(module: Any, args: Any, inputs: Any, output: Any) -> Any:
            for at, row in enumerate(inputs["input_ids"].tolist()):
                n = int(inputs["attention_mask"][at].sum())
                seen.append(tuple(row[:n]) in known)
                if seen[-1]:
                    output.logits[at] = torch.nan
            return output

        teacher.register_forward_hook(spoil, with_kwargs=True)
        return teacher

    monkeypatch.setattr(TrainerContext, "descend", poisoned)
    training = unlearn(asked, "loo_gdr", KNOBS)
    assert len(seen) == 2 * 18, "each piece by the two others"
    assert not any(seen)
    stages = list(dict.fromkeys(record.stage for record in training.losses))
    assert stages == ["teacher1", "teacher2", "teacher3", "unlearn"]
    assert not same(weights(tmp_path / "out"), weights(tiny))

    def of_all(self: Any, models: Any, examples: Any, make: Any) -> Any:
        return measure(self, models, self.forget, make)

    monkeypatch.setattr(TrainerContext, "measure", of_all)
    with pytest.raises(MetricError, match="what teacher1 says is not finite"):
        unlearn(replace(asked, out=tmp_path / "no"), "loo_gdr", KNOBS)


@pytest.mark.slow
def test_interrupted_in_a_teacher_and_in_the_student_it_ends_at_the_same_weights(
    asked: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = replace(asked, options=asked.options.model_copy(update={"save_steps": 1}))
    whole = unlearn(replace(short, out=tmp_path / "whole"), "loo_gdr", KNOBS)
    step, left = UnlearnTrainer.training_step, ["teacher2", "unlearn"]

    def interrupt(self: Any, *given: Any) -> Any:
        if left and self._stage.folder.name == left[0] and self.state.global_step == 1:
            raise KeyboardInterrupt(left.pop(0))
        return step(self, *given)

    monkeypatch.setattr(UnlearnTrainer, "training_step", interrupt)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            unlearn(replace(short, resume=resume), "loo_gdr", KNOBS)
    kept = sorted(path.name for path in (tmp_path / "out/.training/soft").iterdir())
    assert kept == [f"teacher{n}.{what}" for n in (1, 2, 3) for what in ("ids", "probs")]
    resumed = unlearn(replace(short, resume=True), "loo_gdr", KNOBS)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "out"))
    assert [r.loss for r in resumed.losses] == [r.loss for r in whole.losses]
    assert not (tmp_path / "out/.training").exists()


def test_teachers_that_are_the_target_leave_it_where_it_is(
    asked: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrainerContext, "descend", lambda self, model, *a, **o: model.eval())
    same_base = replace(asked, base=asked.model)
    for top in (0, 8):
        out = replace(same_base, out=tmp_path / f"out{top}")
        first, *_ = unlearn(out, "loo", {**KNOBS, "loo_top": top}).losses
        assert first.loss == pytest.approx(0.0, abs=1e-6)
        assert first.grad_norm == pytest.approx(0.0, abs=1e-5)


def test_what_is_missing_is_said(asked: Job, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="loo_klr needs what --model was made from; give --base"):
        unlearn(replace(asked, base=None), "loo_klr")
    with pytest.raises(OptionError, match="loo learns from a set of retain texts; give --retain"):
        unlearn(replace(asked, retain=()), "loo")
    with pytest.raises(OptionError, match="--loo-shards 99 random: there are too few"):
        unlearn(asked, "loo_gdr", {"loo_shards": 99})
    assert not (tmp_path / "out").exists()
    with pytest.raises(OptionError, match="--loo-shards 1: use a whole number of at least 2"):
        find_method("loo").with_options({"loo_shards": 1})
