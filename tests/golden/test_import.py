"""`import` reproduces every published number, from MUSE's files and from open-unlearning's.

Needs the published generations and scores beside the project; skips without them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.golden.test_golden import EXACT, FIGURES, MODELS, ROUGE_TASKS
from unlearnbench.importing import ImportOptions, import_runs
from unlearnbench.recovery.compare import compare, open_comparison
from unlearnbench.results import GenerationRecord, LikelihoodRecord, RunResult
from unlearnbench.runs.folder import RunFolder, read_run

PLACES = {
    "news_verbmem": "verbmem/out/bbc/{}/forget",
    "news_knowmem_f": "knowmem/out/bbc/{}/forget",
    "news_knowmem_r": "knowmem/out/bbc/{}/retain",
    "news_privleak": "privleak/out/bbc/{}",
}
NAMES = {"npo_klr": "npo_klr/step=1020", "ga_gdr": "ga_gdr/step=714"}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


@pytest.fixture(scope="module")
def published(golden_dir: Path) -> dict[str, dict[str, Any]]:
    return {name: json.loads((golden_dir / f"{name}.json").read_bytes()) for name in MODELS}


def lay_out(root: Path, published: dict[str, dict[str, Any]]) -> None:
    for model, tasks in published.items():
        name = NAMES.get(model, model)
        for task, place in PLACES.items():
            folder, found = root / place.format(name), tasks[task]
            if task == "news_privleak":
                for split, texts in found["scores"].items():
                    write(folder / f"{split}.json", [{"text": "t", "ppl": s} for s in texts])
                auc = found["expected"]["auc_forget_holdout"]
                write(folder / "auc.json", {"forget_holdout": auc, "forget_forget": {"PPL": 0.5}})
            else:
                write(folder / "history.json", [{"prompt": "p", **r} for r in found["records"]])
                write(folder / "out.json", found["expected"] | {"model": "x", "max_rougeL": 1.0})


@pytest.fixture(scope="module")
def imported(
    published: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, RunResult]]:
    root, out = tmp_path_factory.mktemp("muse"), tmp_path_factory.mktemp("out")
    lay_out(root, published)
    assert (
        call(*("import", "--format", "muse", str(root), "--task-prefix", "news", "--out", str(out)))
        == 0
    )
    found = {m: out / NAMES.get(m, m) / "unknown" for m in MODELS}
    return out, {model: read_run(path) for model, path in found.items()}


@pytest.mark.parametrize("model", MODELS)
def test_every_mean_and_every_record(
    published: dict[str, dict[str, Any]],
    imported: tuple[Path, dict[str, RunResult]],
    model: str,
) -> None:
    out, runs = imported
    run = runs[model]
    assert set(run.tasks) == set(PLACES)
    folder = RunFolder(out / NAMES.get(model, model) / "unknown")
    for task in ROUGE_TASKS:
        result, want = run.tasks[task], published[model][task]
        assert result.n == 100
        means = {"rougeL": result.value, **result.scores}
        records = folder.read_records(task, result.records_sha256)
        for figure in FIGURES:
            stated = 100 * want["expected"][f"mean_{figure}"]
            assert means[figure] == pytest.approx(stated, abs=100 * EXACT)
            for record, theirs in zip(records, want["records"], strict=True):
                assert isinstance(record, GenerationRecord)
                ours = record.score if figure == "rougeL" else record.scores[figure]
                assert ours == pytest.approx(theirs[figure], abs=EXACT)
                assert (record.output, record.target) == (theirs["response"], theirs["gt"])


@pytest.mark.parametrize("model", MODELS)
def test_every_auc_and_every_text(
    published: dict[str, dict[str, Any]],
    imported: tuple[Path, dict[str, RunResult]],
    model: str,
) -> None:
    out, runs = imported
    result, want = runs[model].tasks["news_privleak"], published[model]["news_privleak"]
    assert result.attacks is not None
    stated = want["expected"]["auc_forget_holdout"]
    assert set(result.attacks) == set(stated)
    for attack, auc in stated.items():
        assert result.attacks[attack].auc == pytest.approx(auc, abs=EXACT)
    assert result.auc == pytest.approx(stated["Min-40%"], abs=EXACT)
    assert result.value is None  # no reference was given
    folder = RunFolder(out / NAMES.get(model, model) / "unknown")
    records = folder.read_records("news_privleak", result.records_sha256)
    scores = [r.scores for r in records if isinstance(r, LikelihoodRecord)]
    assert scores == want["scores"]["forget"] + want["scores"]["holdout"]


@pytest.mark.parametrize("model", MODELS)
def test_runs_are_marked_and_differ_in_nothing(
    published: dict[str, dict[str, Any]],
    imported: tuple[Path, dict[str, RunResult]],
    model: str,
) -> None:
    run = imported[1][model]
    assert run.imported is not None
    assert run.imported.format == "muse"
    assert run.imported.differences == {}
    assert run.checkpoint.path == NAMES.get(model, model)
    for task in ROUGE_TASKS:
        for figure, value in published[model][task]["expected"].items():
            assert run.imported.stated[f"{task}/{figure}"] == value
    assert len(run.imported.files) == 9


def test_a_precision_can_be_named_and_then_compared(
    published: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    """The target and the retrained model are the anchors; one model stands in at 4 bits."""
    full, quantized = tmp_path / "full", tmp_path / "quantized"
    lay_out(full, {m: published[m] for m in ("target", "retrain", "ga_gdr")})
    lay_out(quantized, {"ga_gdr": published["npo_klr"], "target": published["target"]})
    out = tmp_path / "out"
    import_runs(ImportOptions("muse", full, "news", out, "none"))
    import_runs(ImportOptions("muse", quantized, "news", out, "bnb-fp4"))
    opened = open_comparison([out / NAMES["ga_gdr"]], out / "target", out / "retrain")
    rows = {row.task: row for row in compare(opened)}
    want = published["npo_klr"]["news_knowmem_f"]["expected"]["mean_rougeL"] * 100
    assert rows["news_knowmem_f"].quantized == pytest.approx(want, abs=1e-7)
    assert rows["news_knowmem_f"].verdict == "recovers"
    assert rows["news_privleak"].verdict == "recovers"
    assert rows["news_privleak"].target == pytest.approx(-99.8, abs=0.05)


def test_open_unlearnings_own_files_differ_in_nothing(golden_dir: Path, tmp_path: Path) -> None:
    """Each figure against its own kind: their ROUGE is of stems, their AUC is 1 - ours."""
    folder = golden_dir.parent / "open-unlearning"
    if not folder.is_dir():
        pytest.skip("no golden/open-unlearning")
    found = import_runs(ImportOptions("open-unlearning", folder, "news", tmp_path))
    assert len(found) == 2
    for path, run in found:
        assert set(run.tasks) == set(PLACES)
        assert run.imported is not None
        assert run.imported.differences == {}
        assert len(run.imported.stated) == len(PLACES) + 4, "of PrivLeak five attacks"
        theirs = json.loads((folder / path.parent.name / "MUSE_EVAL.json").read_bytes())
        assert run.tasks["news_privleak"].auc == pytest.approx(1 - theirs["mia_min_k"]["auc"])
        for task in ROUGE_TASKS:
            kind = task.removeprefix("news_")
            block = {"verbmem": "forget_verbmem", "knowmem_f": "forget_knowmem"}.get(kind)
            stated = theirs[f"{block or 'retain_knowmem'}_ROUGE"]["agg_value"]
            assert run.tasks[task].scores["rougeL_stem"] == pytest.approx(100 * stated, abs=1e-7)
