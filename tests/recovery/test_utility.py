"""Utility of several retain tasks: the ratio of harmonic means, and its interval."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.test_main import call
from tests.conftest import write_jsonl
from tests.tasks.kinds.test_answers import FILE
from tests.toy_runs import few_draws
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.errors import MetricError
from unlearnbench.metrics.intervals import Values, draw
from unlearnbench.recovery.compare import open_comparison
from unlearnbench.recovery.utility import KeptFigure, share_of

RNG = np.random.default_rng(5)
SIZES = (30, 30, 20, 12)


@pytest.fixture(scope="module", autouse=True)
def _few_draws() -> Iterator[None]:
    with few_draws():
        yield


def parts(models: list[list[np.ndarray]], targets: list[np.ndarray]) -> list[KeptFigure]:
    scale = (0.0, 100.0)
    return [
        KeptFigure(
            f"t{i}",
            [Values(model[i], scale) for model in models],
            Values(targets[i], scale),
            draw(len(targets[i]), 0),
        )
        for i in range(len(targets))
    ]


def scores(level: float, sizes: tuple[int, ...] = SIZES) -> list[np.ndarray]:
    return [100 * RNG.beta(4 * level, 4 * (1 - level), size=n) for n in sizes]


def harmonic(rows: list[np.ndarray]) -> float:
    return float(len(rows) / sum(1 / row.mean() for row in rows))


def test_the_ratio_of_harmonic_means_over_trainings() -> None:
    target, models = scores(0.8), [scores(0.5), scores(0.6)]
    found = share_of(parts(models, target))
    expected = [harmonic(model) / harmonic(target) for model in models]
    assert found.value == pytest.approx(np.mean(expected), rel=1e-12)
    assert found.ci is not None
    alone = share_of(parts(models[:1], target)).ci
    assert alone is not None
    # Two trainings so far apart bound their mean less than either's samples do.
    assert found.ci[1] - found.ci[0] > alone[1] - alone[0]
    # Of one part it is the ratio of means.
    one = share_of(parts([models[0][:1]], target[:1]))
    assert one.value == pytest.approx(models[0][0].mean() / target[0].mean(), rel=1e-12)


def test_a_lost_ability_is_not_made_good_by_others() -> None:
    target, lost = scores(0.8), scores(0.8)
    lost[2] = np.zeros(SIZES[2])
    found = share_of(parts([lost], target))
    assert found.value == 0
    assert found.ci is not None
    assert found.ci[0] == 0
    assert 0.2 < found.ci[1] < 0.6  # of 20 rows of 0, 16.8 could be their mean: 1 - 0.025^(1/20)
    target[1] = np.zeros(SIZES[1])
    with pytest.raises(MetricError, match="t1: the target scores 0"):
        share_of(parts([lost], target))


def test_the_target_has_all_that_it_has() -> None:
    (part, *others) = parts([scores(0.5)], scores(0.8))
    same = [KeptFigure(p.task, [p.target], p.target, p.draws) for p in (part, *others)]
    assert share_of(same).ci == (1.0, 1.0)


def test_a_row_that_was_not_seen_may_be_lost_and_may_be_the_targets() -> None:
    """Where all that was seen is right, the unseen row alone makes the interval: at its lower end
    it is wrong of the model, at its upper end of the target.
    """
    right = [np.full(20, 100.0), np.full(20, 100.0)]
    found = share_of(parts([right], right))
    assert found.value == 1
    assert found.ci is not None
    least = 0.025 ** (1 / 20)
    assert found.ci == pytest.approx((least, 1 / least), abs=0.05)


@pytest.mark.slow  # 300 sets
def test_the_interval_holds_the_truth() -> None:
    """Answers of a row move together between models, figures of the same rows too."""
    held = 0
    for _ in range(300):
        target, model = [], []
        for n in (40, 25):
            ease = RNG.random(n)
            for level in (0.8, 0.6):
                target.append(100.0 * (ease + 0.2 * RNG.random(n) < 0.1 + level))
                model.append(100.0 * (ease + 0.2 * RNG.random(n) < 0.1 + level / 2))
        means = [100 * level for level in (0.8, 0.6)] * 2
        true = (4 / sum(2 / m for m in means)) / (4 / sum(1 / m for m in means))
        ci = share_of(parts([model], target)).ci
        assert ci is not None
        held += ci[0] <= true <= ci[1]
    assert held >= 0.94 * 300


def family(folder: Path) -> dict[str, str]:
    """Runs of three models on a forget task and two retain tasks, one of them with truth ratios;
    the tasks' files are in ``tasks``.
    """
    rows = [
        {"q": f"q{i}?", "a": f"a{i}", "said": f"s{i}", "wrong": [f"w{i}"], "words": f"x{i} y{i}"}
        for i in range(6)
    ]
    write_jsonl(folder / "data" / "toy" / "qa" / "all" / "train.jsonl", rows)
    wrote = {
        **{key: FILE[key] for key in ("description", "dataset_path", "dataset_name", "metadata")},
        **{
            "output_type": "generate_until",
            "test_split": "train",
            "splits": {"train": {"rows": 6}},
        },
        **{"doc_to_text": "W: {{q}}", "doc_to_target": "{{words}}", "metric": "rougeL_recall_stem"},
        "generation_kwargs": {"max_gen_toks": 8},
    }
    asked = {**FILE, "splits": {"train": {"rows": 6}}}
    files = {
        "toy_forget": {**asked, "want": "low"},
        "toy_kept": {**asked, "want": "high"},
        "toy_words": {**wrote, "want": "high"},
    }
    (folder / "tasks").mkdir()
    for name, content in files.items():
        file = folder / "tasks" / f"{name}.yaml"
        file.write_text(json.dumps({**content, "task": name, "tag": ["toys"]}))
    loss = {"target": 0.2, "retrained": 0.4, "hides": 0.9}
    for name, own in loss.items():
        outputs = {f"W: q{i}?": f"x{i}" if name == "hides" else f"x{i} y{i}" for i in range(6)}
        answers = {"a": own, "s": own, "w": 2.0}
        logprobs = {f"Q: q{i}? {a}{i}": [-p] * 2 for i in range(6) for a, p in answers.items()}
        for precision in ("none", "rtn-int4"):
            model = ScriptedModel(outputs, logprobs, name=name, precision=precision)
            update = {"weights_sha256": hashlib.sha256(name.encode()).hexdigest()}
            model.checkpoint = model.checkpoint.model_copy(update=update)
            place: dict[str, Any] = {"data_dir": folder / "data", "output": folder / "out"}
            evaluate(model, "toys", include_path=[folder / "tasks"], **place)
    return {f.name.rsplit("-", 1)[0]: str(f) for f in (folder / "out").iterdir()}


def test_compare_takes_a_family_of_retain_tasks(tmp_path: Path) -> None:
    """Two retain tasks, one of them with truth ratios: three figures."""
    runs = family(tmp_path)
    line = [runs["hides"], "--target", runs["target"], "--retrained", runs["retrained"]]
    table = tmp_path / "rows.json"
    assert call("compare", *line, "--json", str(table)) == 0
    (row,) = [r for r in json.loads(table.read_text()) if r["task"] == "toy_forget"]

    def mean(own: float, rouge: float) -> float:
        return float(3 / (1 / np.exp(-own) + 1 / (1 - np.exp(-2.0 + own)) + 1 / rouge))

    assert row["utility"] == pytest.approx(mean(0.9, 0.5) / mean(0.2, 1.0), rel=1e-6)
    policy = tmp_path / "policy.yaml"
    policy.write_text("tasks: [toy_*]\nprecisions: [none]\nmin_utility: 0.99\n")
    junit = tmp_path / "found.xml"
    assert call("check", *line, "--policy", str(policy), "--junit", str(junit)) in (1, 2)
    assert "toy_*" in junit.read_text()
    whole = "tasks: [toy_*]\nprecisions: [none, rtn-int4]\nmax_excess: 100\nmin_utility: 0\n"
    policy.write_text(whole)
    given = tmp_path / "certificate.json"
    assert call("check", *line, "--policy", str(policy), "--certify", str(given)) == 0
    assert call("check", *line, "--verify-certificate", str(given)) == 0
    policy.write_text(whole.replace("toy_*", "toy_forget"))  # a forget task alone says its family
    assert call("check", *line, "--policy", str(policy), "--certify", str(given)) == 0


def test_utilities_of_other_figures_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = {name: Path(run) for name, run in family(tmp_path).items()}
    ends = runs["target"], runs["retrained"]
    open_comparison([runs["hides"], runs["retrained"]], *ends)
    assert "utilities" not in caplog.text
    for condition in ("none", "rtn-int4"):
        path = runs["hides"] / condition / "run.json"
        content = json.loads(path.read_text())
        del content["tasks"]["toy_words"]
        path.write_text(json.dumps(content))
    open_comparison([runs["hides"], runs["retrained"]], *ends)
    assert "hides of toy_kept probability, toy_kept truth_better; retrained of" in caplog.text
