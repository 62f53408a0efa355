from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from unlearnbench import evaluate
from unlearnbench.errors import ResultError
from unlearnbench.evaluation.drafts import Drafts, draft_figures
from unlearnbench.models.hf import HFModel
from unlearnbench.requests import Generate, Generated, Sampling, Score
from unlearnbench.results import RunResult

TASKS, CONDITIONS = "toy_verbmem,toy_knowmem_f", "none,rtn-int8,bnb-int8"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, tuple[str, ...]]]:
    """Condition, request and drafts of all that models are asked."""
    seen: list[tuple[str, str, tuple[str, ...]]] = []
    whole = HFModel.generate

    def watch(self: HFModel, requests: Any, skip: Any = ()) -> Any:
        seen.extend((self.condition.name, r.id, r.drafts) for r in requests)
        return whole(self, requests, skip)

    monkeypatch.setattr(HFModel, "generate", watch)
    return seen


def files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*.jsonl")}
    return {name: content for name, content in found.items() if "/samples/" in name}


def outputs(folder: Path, condition: str) -> dict[str, str]:
    found = {n: c for n, c in files(folder).items() if n.split("/")[-3] == condition}
    rows = [json.loads(line) for content in found.values() for line in content.splitlines()]
    return {f"{row['task']}:{row['id']}": row["output"] for row in rows if "output" in row}


def drafted(results: list[RunResult]) -> list[Any]:
    return [task.drafts for result in results for _, task in sorted(result.tasks.items())]


def test_answers_of_a_condition_are_drafts_of_the_next(
    tiny: Path, toy: Toy, tmp_path: Path, given: list[Any]
) -> None:
    plain = evaluate(tiny, TASKS, CONDITIONS, **toy.options, drafts="off")
    assert not any(drafts for _, _, drafts in given)
    assert drafted(plain) == [None] * 6
    expected = files(toy.out)
    given.clear()
    found = evaluate(tiny, TASKS, CONDITIONS, **(toy.options | {"output": tmp_path / "again"}))
    assert files(tmp_path / "again") == expected, "the same records, byte for byte"
    first = outputs(toy.out, "none")
    for condition, name, drafts in given:
        assert (drafts[:1] == (first[name],)) == (condition != "none" and first[name] != "")
    at = drafted(found)
    assert at[:2] == [None, None], "nothing was known"
    assert all(figures.drafted > 0 < figures.accepted for figures in at[2:4])
    assert at[4:] == [None, None], "LLM.int8()'s rows move each other"
    for figures, task in zip(at[2:4], ("toy_knowmem_f", "toy_verbmem"), strict=True):
        assert figures.answers == found[1].tasks[task].n
        assert figures.passes + figures.accepted >= figures.tokens


def test_an_interrupted_condition_goes_on_with_the_same_drafts(
    tiny: Path, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: list[Any]
) -> None:
    options = toy.options | {"batch_size": 2}
    whole = evaluate(tiny, TASKS, CONDITIONS, **(options | {"output": tmp_path / "whole"}))
    asked = [*given]
    answer = HFModel.generate

    def stop(self: HFModel, requests: Any, skip: Any = ()) -> Any:
        for n, found in enumerate(answer(self, requests, skip)):
            if n and self.condition.name == "rtn-int8":
                raise KeyboardInterrupt
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(HFModel, "generate", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(tiny, TASKS, CONDITIONS, **options)
    given.clear()
    again = evaluate(tiny, TASKS, CONDITIONS, **options)
    assert given == [each for each in asked if each[0] != "none"]
    assert drafted(again) == drafted(whole)
    assert files(toy.out) == files(tmp_path / "whole")
    assert drafted(evaluate(tiny, TASKS, CONDITIONS, **options)) == drafted(whole), "taken over"


def test_a_reference_run_gives_drafts(
    tiny: Path, toy: Toy, tmp_path: Path, given: list[Any]
) -> None:
    evaluate(tiny, "toy", **toy.options)
    (folder,) = (path.parent for path in toy.out.rglob("run.json"))
    given.clear()
    options = toy.options | {"reference": folder, "output": tmp_path / "again"}
    (result,) = evaluate(tiny, "toy", "rtn-int8", **options)
    known = outputs(toy.out, "none")
    assert [drafts for _, _, drafts in given] == [
        (known[name],) if known[name] else () for _, name, _ in given
    ]
    assert result.tasks["toy_verbmem"].drafts is not None
    assert result.tasks["toy_privleak"].drafts is None
    file = folder / "samples" / "toy_verbmem.jsonl"
    file.write_bytes(file.read_bytes() + b"\n")
    given.clear()
    evaluate(tiny, "toy_verbmem", "rtn-int8", **(options | {"output": tmp_path / "third"}))
    assert not any(drafts for _, _, drafts in given), "a damaged file drafts nothing"


def test_other_runs_give_drafts_too(tiny: Path, toy: Toy, tmp_path: Path, given: list[Any]) -> None:
    evaluate(tiny, "toy_verbmem", **toy.options)
    (folder,) = (path.parent for path in toy.out.rglob("run.json"))
    given.clear()
    options = toy.options | {"drafts_from": [folder], "output": tmp_path / "again"}
    (result,) = evaluate(tiny, "toy_verbmem", "rtn-int8", **options)
    known = outputs(toy.out, "none")
    assert {name: drafts for _, name, drafts in given} == {n: (t,) for n, t in known.items() if t}
    assert result.tasks["toy_verbmem"].drafts is not None
    with pytest.raises(ResultError, match="nowhere"):
        evaluate(tiny, "toy_verbmem", **(options | {"drafts_from": [tmp_path / "nowhere"]}))


def test_what_the_reference_run_has_of_the_same_weights_is_not_asked_again(
    tiny: Path, toy: Toy, tmp_path: Path, given: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    evaluate(tiny, "toy_verbmem,toy_privleak", **toy.options)
    (folder,) = (path.parent for path in toy.out.rglob("run.json"))
    given.clear()
    options = toy.options | {"reference": folder, "output": tmp_path / "again"}
    full, fewer = evaluate(tiny, "toy", "none,rtn-int8", **options)
    asked = {(condition, name.partition(":")[0]) for condition, name, _ in given}
    rounded = {("rtn-int8", "toy_verbmem"), ("rtn-int8", "toy_knowmem_f")}
    assert asked == {("none", "toy_knowmem_f"), *rounded}
    assert f"toy_verbmem: already in {folder}, not computed again" in caplog.text
    plain = toy.options | {"reference": folder, "output": tmp_path / "plain"}
    for again, whole in zip(
        (full, fewer), evaluate(tiny, "toy", "none,rtn-int8", fresh=True, **plain), strict=True
    ):
        left_out = {"environment", "drafts"}
        for name, task in whole.tasks.items():
            assert again.tasks[name].model_dump(exclude=left_out) == task.model_dump(
                exclude=left_out
            )
    assert files(tmp_path / "again") == files(tmp_path / "plain"), "byte for byte"
    assert full.tasks["toy_privleak"].value == pytest.approx(0.0)
    given.clear()
    assert evaluate(tiny, "toy", "none,rtn-int8", **options) == [full, fewer]
    assert given == []


@pytest.mark.parametrize(
    "change", ["limit", "damaged", "fewer", "drawn", "version", "seed", "dtype"]
)
def test_another_measurement_is_not_shared(
    tiny: Path, toy: Toy, tmp_path: Path, given: list[Any], change: str
) -> None:
    evaluate(tiny, "toy_verbmem", **toy.options)
    (folder,) = (path.parent for path in toy.out.rglob("run.json"))
    more: dict[str, Any] = {}
    if change == "damaged":
        file = folder / "samples" / "toy_verbmem.jsonl"
        file.write_bytes(file.read_bytes() + b"\n")
    elif change in ("drawn", "version", "fewer"):
        content = json.loads((folder / "run.json").read_text())
        task = content["tasks"]["toy_verbmem"]
        if change == "drawn":
            task["drawn"] = {"seed": 0, "of": 9}
        elif change == "version":
            task["environment"]["source_sha256"] = "f" * 64
        else:  # whose hash is right
            file = folder / "samples" / "toy_verbmem.jsonl"
            file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[1:]))
            task["records_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        (folder / "run.json").write_text(json.dumps(content))
    else:
        more = {change: {"limit": 1, "seed": 1, "dtype": "bf16"}[change]}
    given.clear()
    options = toy.options | {"reference": folder, "output": tmp_path / "again"} | more
    (result,) = evaluate(tiny, "toy_verbmem", **options)
    assert len(given) == result.tasks["toy_verbmem"].n


def test_the_first_condition_leads_and_a_drawn_answer_is_of_its_own_request() -> None:
    drafts, drawn = Drafts(), Sampling(0.9, 0, seed=1)
    asked = [Generate("a", "p", 4), Generate("b", "q", 4, (), drawn), Generate("c", "q", 4)]
    assert drafts.give(asked) == asked
    for n in range(6):
        texts = {r.id: Generated(r.id, f"{r.id}{n % 5}", 1) for r in asked}
        drafts.take([*asked, Score("d", "text")], texts)
    first, second, third = drafts.give(asked)
    assert first.drafts == ("a0", "a4", "a3", "a2"), "few, and each once"
    assert second.drafts[0] == "b0"
    assert third.drafts[0] == "c0", "no drawn answer is a greedy one's draft"
    (other,) = drafts.give([Generate("e", "q", 9, ("x",), drawn)])
    assert other.drafts == ()


def test_figures_are_of_what_was_verified_alone() -> None:
    assert draft_figures([Generated("a", "x", 3)]) is None
    known = [Generated("b", "x", 4, 2, 3, 2), Generated("c", "y", 1, 1, 0, 0)]
    found = draft_figures([Generated("a", "x", 3), *known])
    assert found is not None
    assert found.model_dump() == {
        "answers": 2,
        "tokens": 5,
        "drafted": 3,
        "accepted": 2,
        "passes": 3,
    }
