"""Where other answers come from, and what may not be one."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import write_jsonl
from tests.training.helpers import go, same, weights
from unlearnbench.errors import DataError, OptionError
from unlearnbench.training.alternatives import REFUSALS, answers_of_tasks
from unlearnbench.training.context import TrainerContext
from unlearnbench.training.job import Job, unlearn
from unlearnbench.training.options import CorpusOptions

ROWS = [{"question": f"Which gate is {n}?", "answer": f"the gate {n}"} for n in range(6)]


@pytest.fixture
def pairs(job: Job, tmp_path: Path) -> Job:
    write_jsonl(tmp_path / "qa.jsonl", ROWS)
    others = [{"question": f"Who sang {n}?", "answer": f"Bo number {n}"} for n in range(5)]
    write_jsonl(tmp_path / "others.jsonl", others)
    forget, retain = (str(tmp_path / "qa.jsonl"),), (str(tmp_path / "others.jsonl"),)
    roomy = job.options.model_copy(update={"max_length": 128})
    return replace(job, forget=forget, retain=retain, out=tmp_path / "out", options=roomy)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Each forget row's answer and its alternatives, as the loss reads them."""
    found: list[tuple[str, list[str]]] = []
    whole: Any = vars(TrainerContext)["prepared"]

    def keep(self: Any) -> Any:
        examples = whole.func(self)
        for e in examples:
            texts = [self.tokenizer.decode(x.ids[x.prompt :]) for x in (e, *e.alternatives)]
            shown = [self.tokenizer.decode(x.ids[: x.prompt]) for x in (e, *e.alternatives)]
            assert len(set(shown)) == 1, "the same question"
            assert all(label == -100 for x in e.alternatives for label in x.labels[: x.prompt])
            found.append((texts[0], texts[1:]))
        return examples

    made = cached_property(keep)
    made.__set_name__(TrainerContext, "prepared")
    monkeypatch.setattr(TrainerContext, "prepared", made)
    return found


def test_a_refusal_is_an_answer_to_each_question(pairs: Job, seen: Any) -> None:
    training = unlearn(replace(pairs, alternative="refuse", retain=()), "dpo")
    assert len(seen) == len(ROWS)
    assert all(tuple(t.strip() for t in others) == REFUSALS for _, others in seen)
    assert training.losses[0].loss == pytest.approx(2 / 0.1 * math.log(2), rel=1e-5)
    assert training.losses[-1].loss < training.losses[0].loss
    assert training.options.model_dump()["alternative"] == "refuse"


def test_answers_of_the_retain_set_and_halves_of_its_texts(
    pairs: Job, job: Job, tmp_path: Path, seen: Any
) -> None:
    training = unlearn(replace(pairs, alternative="retain"), "dpo_gdr")
    assert len(seen) == len(ROWS)
    for answer, others in seen:
        assert len(others) == 4
        assert all("Bo number" in other for other in others)
        assert "gate" in answer
    assert training.options.model_dump()["alternative"] == "retain"
    seen.clear()
    go(replace(job, alternative="retain"), tmp_path / "texts", "flat_gdr")
    assert len(seen) == 18
    assert all(len(others) == 4 and answer not in others for answer, others in seen)
    with pytest.raises(OptionError, match="the forget set has pairs and the retain set has none"):
        go(replace(pairs, retain=job.retain, alternative="retain"), tmp_path / "no", "dpo_gdr")


def test_a_file_gives_several_for_each(pairs: Job, tmp_path: Path, seen: Any) -> None:
    rows = [{"question": r["question"].upper(), "alternative": ["a post", "a door"]} for r in ROWS]
    write_jsonl(tmp_path / "alt.jsonl", rows[::-1])
    training = unlearn(replace(pairs, alternative=str(tmp_path / "alt.jsonl")), "dpo_klr")
    assert [[o.strip() for o in others] for _, others in seen] == [["a post", "a door"]] * 6
    (record,) = (part for part in training.data if part.role == "alternatives")
    assert record.rows == 6
    write_jsonl(tmp_path / "alt.jsonl", [r | {"alternative": "a wall"} for r in rows])
    again = replace(pairs, alternative=str(tmp_path / "alt.jsonl"), out=tmp_path / "again")
    assert unlearn(again, "dpo_klr").recipe != training.recipe


def test_generic_words_are_the_targets_own(pairs: Job, tmp_path: Path, seen: Any) -> None:
    training = unlearn(replace(pairs, alternative="generic", retain=()), "flat")
    assert {record.stage for record in training.losses} == {"reinforce", "unlearn"}
    assert all(len(others) == 1 for _, others in seen)
    assert any(others[0] != answer for answer, others in seen)


def test_interrupted_and_resumed_gives_the_same_weights(
    pairs: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlearnbench.training import trainer as module

    class Stop(BaseException):
        pass

    options = pairs.options.model_copy(update={"max_steps": 4, "save_steps": 2})
    asked = replace(pairs, alternative="refuse", options=options)
    whole = unlearn(replace(asked, out=tmp_path / "whole"), "dpo_gdr")
    step = module.UnlearnTrainer.training_step

    def interrupt(self: Any, *given: Any) -> Any:
        if self.state.global_step == 3:
            raise Stop
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(module.UnlearnTrainer, "training_step", interrupt)
        with pytest.raises(Stop):
            unlearn(replace(asked, out=tmp_path / "parts"), "dpo_gdr")
    resumed = unlearn(replace(asked, out=tmp_path / "parts", resume=True), "dpo_gdr")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert [r.loss for r in resumed.losses] == [r.loss for r in whole.losses]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (ROWS[:5], "needs 'question' or 'text'"),
        ([r | {"alternative": "x"} for r in ROWS[:4]], "no row for 2 of 6 forget texts, the first"),
        ([r | {"alternative": []} for r in ROWS], "row 1: it needs"),
        (
            [r | {"alternative": ["x", r["answer"].upper()]} for r in ROWS],
            r"an alternative is the true answer of .*/0, .*/1, .*/2 and 3 more",
        ),
    ],
)
def test_a_file_that_does_not_do_is_refused(
    pairs: Job, tmp_path: Path, rows: list[dict[str, Any]], says: str
) -> None:
    write_jsonl(tmp_path / "alt.jsonl", rows)
    with pytest.raises(DataError, match=says):
        unlearn(replace(pairs, alternative=str(tmp_path / "alt.jsonl"), retain=()), "dpo")
    assert not (tmp_path / "out").exists()


def test_a_folder_with_some_of_the_tasks_rows_gives_the_answers_of_those(tmp_path: Path) -> None:
    sust = tmp_path / "muse-bench/MUSE-News/sust"
    sust.mkdir(parents=True)
    write_jsonl(sust / "forget_2.jsonl", [{"text": "The harbour is open. " * 60}])
    knowmem = tmp_path / "muse-bench/MUSE-News/knowmem"
    knowmem.mkdir()
    for name in ("forget_qa", "forget_qa_icl"):
        write_jsonl(knowmem / f"{name}.jsonl", ROWS * 2)
    found = answers_of_tasks(CorpusOptions(data_dir=str(tmp_path)))
    assert found["the gate 3"] == "news_knowmem_f: forget_qa/9"


def test_an_evaluations_answers_are_never_learned(pairs: Job, tmp_path: Path) -> None:
    """The demo's questions are always at hand."""
    from unlearnbench.demo.start import DATA

    lines = (DATA / "knowmem/retain_qa.jsonl").read_text(encoding="utf-8").splitlines()
    taken = json.loads(lines[0])["answer"]
    rows = [r | {"alternative": "x"} for r in ROWS]
    rows[2]["alternative"] = f" {taken.upper()}"
    write_jsonl(tmp_path / "alt.jsonl", rows)
    says = r"cannot be learned: .*alt.jsonl: row 3 is that of demo_knowmem_r: retain_qa/0"
    with pytest.raises(DataError, match=says):
        unlearn(replace(pairs, alternative=str(tmp_path / "alt.jsonl"), retain=()), "dpo")
    retain = replace(pairs, retain=("task:demo_knowmem_r",), alternative="retain")
    with pytest.raises(DataError, match=r"retain_qa/0 is that of demo_knowmem_r: .* and \d+ more"):
        unlearn(retain, "dpo_gdr")
    with pytest.raises(OptionError, match="a task's rows are what is evaluated"):
        unlearn(replace(pairs, alternative="task:demo_knowmem_r", retain=()), "dpo")


@pytest.mark.parametrize(
    ("method", "more", "says"),
    [
        ("dpo", [], "dpo reads other answers to what is forgotten; give --alternative FILE"),
        ("ga", ["--alternative", "refuse"], "ga reads no other answers"),
        ("dpo", ["--alternative", "retain"], "--alternative retain: give --retain"),
        ("flat", ["--alternative", "none.jsonl"], "none.jsonl: cannot be read"),
        ("mismatch", ["--alternative", "generic"], "generic has 1 for each text; lower --mismatc"),
        (
            "mismatch",
            ["--alternative", "refuse", "--mismatches", "21"],
            "mismatch reads 21 other answers, and --alternative refuse has 20 for each text",
        ),
        ("flat", ["--alternative", "refuse", "--divergence", "js"], "--divergence"),
    ],
)
def test_bad_input_is_one_line(
    quick: list[str], capsys: pytest.CaptureFixture[str], method: str, more: list[str], says: str
) -> None:
    assert call(*quick, "--method", method, *more) == 2
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
