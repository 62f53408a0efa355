"""A finished run's figures from its records: forget quality, model utility, and what differs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.kinds.test_answers import LOGPROBS, ROWS, write
from tests.toy_runs import Bench, Skill
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.errors import OptionError, ResultError
from unlearnbench.evaluation.rescore import UTILITY, Rescored, rescore, rescored_json
from unlearnbench.metrics.membership import privleak
from unlearnbench.metrics.truth import forget_quality
from unlearnbench.results import GenerationRecord, LikelihoodRecord
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.registry import load_registry

NAME = "toy_answers"


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    """Run folders of two models, the toy's task beside them."""
    found = write(tmp_path, ROWS)
    likely = {text: [value / 3 for value in values] for text, values in LOGPROBS.items()}
    models = {"unlearned": LOGPROBS, "retrained": likely}
    for name, values in models.items():
        evaluate(ScriptedModel(logprobs=values, name=name), NAME, **found)
    short = ScriptedModel(logprobs=LOGPROBS, name="short")
    evaluate(short, NAME, limit=1, **found)
    return {name: next((tmp_path / "out").glob(f"{name}-*/none")) for name in (*models, "short")}


def again(runs: dict[str, Path], name: str, reference: str | None = None) -> Rescored:
    registry = load_registry([runs[name].parents[2] / "tasks"])
    return rescore(runs[name], runs[reference] if reference else None, registry)


def ratios(values: dict[str, list[float]]) -> list[float]:
    """Of the toy's two questions, geometric."""
    mean = {text: -sum(v) / len(v) for text, v in values.items()}
    each = [("Q: one? ", "so right", "bad", "worse"), ("Q: two? ", "oh yes", "no", "nay")]
    return [
        math.exp(-(mean[q + a] + mean[q + b]) / 2) / (math.exp(-mean[q + t]) + 1e-10)
        for q, t, a, b in each
    ]


def test_forget_quality_against_the_retrained_run(runs: dict[str, Path]) -> None:
    found = again(runs, "unlearned", "retrained")
    likely = {text: [value / 3 for value in values] for text, values in LOGPROBS.items()}
    want = forget_quality(ratios(LOGPROBS), ratios(likely))
    assert found.forget_quality[NAME]["geometric"] == want
    assert found.differences == {}
    assert found.notes == []
    stated = read_run(runs["unlearned"]).tasks[NAME]
    assert found.values[NAME] == pytest.approx({"probability": stated.value, **stated.scores})
    whole = rescored_json(found)
    assert whole["forget_quality"][NAME]["geometric"]["n"] == 2
    assert "model_utility" not in whole


def test_without_a_reference_it_is_said_and_of_itself_too(runs: dict[str, Path]) -> None:
    found = again(runs, "unlearned")
    assert found.forget_quality == {}
    assert "no forget quality without --reference" in found.notes[0]
    itself = again(runs, "unlearned", "unlearned")
    assert "this very run" in itself.notes[0]
    assert itself.forget_quality[NAME]["geometric"].p == 1


def test_a_reference_of_other_rows_is_refused(runs: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="limit|samples"):
        again(runs, "unlearned", "short")


def test_a_reference_that_is_missing_or_lacks_the_task(runs: dict[str, Path]) -> None:
    with pytest.raises(OptionError, match="no run.json there"):
        again({**runs, "nowhere": runs["unlearned"] / "x"}, "unlearned", "nowhere")
    run = runs["retrained"] / "run.json"
    content = json.loads(run.read_text())
    content["tasks"]["other"] = content["tasks"].pop(NAME)
    run.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=f"has no {NAME}; evaluate it first"):
        again(runs, "unlearned", "retrained")


def test_a_number_that_the_records_do_not_give_shows(runs: dict[str, Path]) -> None:
    run = runs["unlearned"] / "run.json"
    content = json.loads(run.read_text())
    content["tasks"][NAME]["value"] += 5
    run.write_text(json.dumps(content))
    assert again(runs, "unlearned").differences == {f"{NAME}/probability": pytest.approx(-5)}


def test_a_task_that_is_not_known_here_is_said(runs: dict[str, Path]) -> None:
    found = rescore(runs["unlearned"], None, load_registry())
    assert "toy_answers: no such task here" in found.notes[0]


def test_model_utility_is_of_nine_means(runs: dict[str, Path], tmp_path: Path) -> None:
    """The toy's run with TOFU's six tasks put into it; the ratios are those of its records."""
    folder, run = RunFolder(runs["unlearned"]), read_run(runs["unlearned"])
    records = folder.read_records(NAME, run.tasks[NAME].records_sha256)
    tasks: dict[str, Any] = {}
    for name in dict.fromkeys(task for task, _ in UTILITY.values()):
        if name.endswith("rouge"):
            texts: Any = {"prompt": "q", "output": "one", "target": "one two"}
            score: Any = {"score": 0.5, "scores": {"rouge1_recall_stem": 0.5, "rougeL_stem": 0.5}}
            made: list[Any] = [GenerationRecord(task=name, id="train/0", **texts, **score)]
            metric = "rougeL_recall_stem"
        else:
            made = [record.model_copy(update={"task": name}) for record in records]
            metric = "probability" if "retain" in name else "probability_normalised"
            if "retain" not in name:
                made = [_headed(record, metric) for record in made]
        sha256 = folder.write_records(name, made)
        update = {"metric": metric, "records_sha256": sha256, "version": 1.0}
        tasks[name] = run.tasks[NAME].model_copy(update=update)
    folder.write_run(run.model_copy(update={"tasks": tasks}))
    found = rescore(runs["unlearned"], None, load_registry())
    assert set(found.parts) == set(UTILITY)
    assert found.parts["retain_rouge"] == 0.5
    assert found.rows["world_facts_truth"] == 2
    assert found.utility == pytest.approx(9 / sum(1 / value for value in found.parts.values()))
    del tasks["tofu_retain_rouge"]
    folder.write_run(run.model_copy(update={"tasks": tasks}))
    less = rescore(runs["unlearned"], None, load_registry())
    assert less.utility is None
    assert "no model utility without tofu_retain_rouge; evaluate them" in less.notes


def _headed(record: Any, metric: str) -> Any:
    """The same with another figure as its score."""
    scores = {**record.scores, "probability": record.score}
    return record.model_copy(update={"score": scores.pop(metric), "scores": scores})


def test_the_attack_that_takes_the_reference_off(tmp_path: Path) -> None:
    bench, skills = Bench(tmp_path, 6), {"unlearned": 0.4, "retrained": 0.0}
    found: dict[str, Path] = {}
    for name, gap in skills.items():
        skill = Skill([0] * 6, [0] * 6, gap)
        found[name] = bench.run(name, "none", skill, "made_privleak")
    name, registry = "made_privleak", load_registry([bench.tasks])
    sides: list[list[float]] = []
    for split in ("forget", "holdout"):
        own, other = (
            [r.scores["PPL"] for r in read_records(found[model], name) if r.split == split]
            for model in skills
        )
        sides.append([a - b for a, b in zip(own, other, strict=True)])
    wins = [(f > h) + 0.5 * (f == h) for f in sides[0] for h in sides[1]]
    again = rescore(found["unlearned"], found["retrained"], registry)
    assert again.values[name]["auc_against_reference"] == pytest.approx(sum(wins) / len(wins))
    assert again.differences == {}
    stated = {model: read_run(found[model]).tasks[name].attacks or {} for model in skills}
    for attack, found_here in stated["unlearned"].items():
        assert again.values[name][f"auc_{attack}"] == pytest.approx(found_here.auc)
        leak = privleak(found_here.auc, stated["retrained"][attack].auc)
        assert again.values[name][f"privleak_{attack}"] == pytest.approx(leak)
    plain = read_run(found["unlearned"]).tasks[name].auc
    assert plain is not None
    assert sum(wins) / len(wins) < plain
    assert "auc_against_reference" not in rescore(found["unlearned"], None, registry).values[name]
    questions = bench.run("other", "none", Skill([0] * 6, [0] * 6), "made_knowmem_f")
    said = rescore(found["unlearned"], questions, registry)
    assert said.notes == [f"{name}: the reference did not evaluate it: no attack against it"]


def read_records(folder: Path, task: str) -> list[LikelihoodRecord]:
    records = RunFolder(folder).read_records(task, read_run(folder).tasks[task].records_sha256)
    return [record for record in records if isinstance(record, LikelihoodRecord)]
