from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.golden.test_import import write
from unlearnbench.errors import UnlearnbenchError
from unlearnbench.importing import FORMATS, ImportOptions, import_runs
from unlearnbench.importing.base import Format
from unlearnbench.metrics.rouge import score_output
from unlearnbench.results import RunResult
from unlearnbench.runs.folder import read_run

ANSWERS = [("the right words", "the right words"), ("other words", "the right words")]
STEMS = [("asking boats", "asked boat"), ("asking", "asks gate gates")]
SCORES = [{"PPL": 1.0, "Min-40%": 1.0}, {"PPL": 2.0, "Min-40%": 3.0}]


def history(**stated: float) -> list[dict[str, Any]]:
    return [{"prompt": "p", "gt": gt, "response": out, **stated} for out, gt in ANSWERS]


def texts(values: list[dict[str, float]]) -> list[dict[str, Any]]:
    return [{"text": "t", "ppl": scores} for scores in values]


def run(root: Path, tmp_path: Path, kind: Format = "muse", prefix: str = "news") -> Any:
    return import_runs(ImportOptions(kind, root, prefix, tmp_path / "out"))


def only(found: list[tuple[Path, RunResult]]) -> RunResult:
    ((path, result),) = found
    assert read_run(path) == result
    return result


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """The first layout with both corpora and what is to be skipped."""
    root = tmp_path / "muse"
    for corpus in ("bbc", "hp"):
        write(root / "knowmem/out" / corpus / "ga/step=102/forget/history.json", history())
        write(root / "knowmem/out" / corpus / "ga/step=102/forget/out.json", {"mean_rougeL": 0.6})
    base = root / "privleak/out/bbc/tv/alpha=512"
    write(base / "forget.json", texts(SCORES))
    write(base / "retain2.json", texts(SCORES))
    write(base / "holdout.json", texts([{"PPL": 1.5, "Min-40%": 2.0}]))
    for odd in ("scal/ga/2", "sust/ga/2"):
        write(root / "knowmem/out/bbc" / odd / "retain/history.json", history())
    write(root / "verbmem/out/bbc/target/forget_all/history.json", history())
    write(root / "verbmem/out/bbc/npo/forget/out.json", {"mean_rougeL": 0.2})
    write(root / "privleak/out/bbc/target/auc.json", {"forget_holdout": {"PPL": 0.1}})
    return root


def test_the_first_layout(first: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="unlearnbench"):
        found = {str(p.relative_to(tmp_path / "out")): r for p, r in run(first, tmp_path)}
    assert set(found) == {"ga/step=102/unknown", "tv/alpha=512/unknown"}
    ga, tv = found["ga/step=102/unknown"], found["tv/alpha=512/unknown"]
    assert list(ga.tasks) == ["news_knowmem_f"]  # a partial run
    want = 50 * sum(score_output(out, gt)["rougeL"] for out, gt in ANSWERS)
    assert ga.tasks["news_knowmem_f"].value == pytest.approx(want)
    assert tv.tasks["news_privleak"].auc == pytest.approx(0.5)  # 3.0 > 2.0 and 1.0 < 2.0
    assert ga.condition.name == "unknown"
    assert ga.condition.options.bits is None
    assert ga.imported is not None
    difference = ga.imported.differences["news_knowmem_f/mean_rougeL"]
    assert difference == pytest.approx(want / 100 - 0.6)
    for word in ("scal is another experiment", "sust is", "forget_all is", "without outputs"):
        assert word in caplog.text, word


def test_the_prefix_picks_the_corpus(first: Path, tmp_path: Path) -> None:
    books = only(run(first, tmp_path, prefix="books"))
    assert list(books.tasks) == ["books_knowmem_f"]


def flat(scores: dict[str, float]) -> dict[str, object]:
    return {"text": "t", "id": 7, **scores}


@pytest.mark.field(
    "Data, files, commands", "import of the paper's own flat `privleak/log.json`", "runs"
)
@pytest.mark.parametrize("shape", [flat, lambda scores: {"text": "t", "ppl": scores}])
def test_the_second_layout(tmp_path: Path, shape: Callable[[Any], Any]) -> None:
    root = tmp_path / "temp"
    for kind in ("knowmem_f", "knowmem_r", "verbmem_f"):
        write(root / "my/model" / kind / "log.json", history(rougeL=0.25))
        write(root / "my/model" / kind / "agg.json", {"mean_rougeL": 0.25, "max_rougeL": 1.0})
    log = {split: [shape(scores) for scores in SCORES] for split in ("forget", "holdout")}
    log["retain"] = [shape({"PPL": math.nan, "Min-40%": math.nan})]  # which PrivLeak does not take
    write(root / "my/model/privleak/log.json", log)
    write(root / "my/model/privleak/auc.json", {"forget_holdout_Min-40%": 0.75})
    result = only(run(root, tmp_path))
    assert result.tasks["news_privleak"].attacks is not None
    assert set(result.tasks["news_privleak"].attacks) == {"PPL", "Min-40%"}
    kinds = ["knowmem_f", "knowmem_r", "privleak", "verbmem"]
    assert list(result.tasks) == [f"news_{kind}" for kind in kinds]
    assert result.checkpoint.path == "my/model"
    assert result.imported is not None
    differences = result.imported.differences
    assert differences["news_privleak/auc_Min-40%"] == pytest.approx(0.5 - 0.75)
    assert differences["news_verbmem/forget/0/rougeL"] == pytest.approx(1 - 0.25)


@pytest.mark.field("Data, files, commands", "import, NaN in a secondary attack", "with a note")
def test_a_text_without_one_attack_costs_that_attack_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = [{"PPL": 1.0, "Min-5%": 9.0, "Min-40%": 1.0}, {"PPL": 2.0, "Min-40%": 3.0}]
    short = {"PPL": 1.5, "Min-5%": math.nan, "Min-40%": 2.0}  # the mean of no number
    log = {"forget": [flat(s) for s in scores], "holdout": [flat(short)] * 2}
    write(tmp_path / "in/m/privleak/log.json", log)
    write(tmp_path / "in/m/privleak/auc.json", {"forget_holdout_Min-5%": math.nan})
    task = only(run(tmp_path / "in", tmp_path)).tasks["news_privleak"]
    assert task.attacks is not None
    assert set(task.attacks) == {"PPL", "Min-40%"}
    assert task.auc == pytest.approx(0.5)
    said = "news_privleak: 3 of 4 texts are too short for some attacks (forget/1, holdout/0"
    assert said in caplog.text
    assert "so this run is without Min-5%" in caplog.text


def test_lm_eval(tmp_path: Path) -> None:
    place = tmp_path / "lm" / "org__model"
    place.mkdir(parents=True)
    rows = [
        {
            "doc_id": i,
            "target": gt,
            "arguments": {"gen_args_0": {"arg_0": f"prompt {i}", "arg_1": {}}},
            "resps": [[out]],
            "filtered_resps": [out],
        }
        for i, (out, gt) in reversed(list(enumerate(ANSWERS)))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for date, text in [("2025-01-01T00-00-00.1", "{}\n"), ("2025-02-01T00-00-00.1", lines)]:
        (place / f"samples_news_knowmem_f_{date}.jsonl").write_text(text, encoding="utf-8")
    (place / "samples_hellaswag_2025-02-01T00-00-00.1.jsonl").write_text("{}\n", encoding="utf-8")
    result = only(run(tmp_path / "lm", tmp_path, "lm-eval"))
    assert list(result.tasks) == ["news_knowmem_f"]
    assert result.tasks["news_knowmem_f"].n == 2
    assert result.checkpoint.path == "org__model"


def test_lm_eval_of_the_second_version(tmp_path: Path) -> None:
    for name, blank, version in (("first", " ", 1.0), ("second", "", 2.0)):
        rows = [
            {
                "doc_id": i,
                "target": gt,
                "arguments": {"gen_args_0": {"arg_0": f"Question: {i}?\nAnswer:{blank}"}},
                "filtered_resps": [out],
            }
            for i, (out, gt) in enumerate(ANSWERS)
        ]
        path = tmp_path / name / "m" / "samples_news_knowmem_f_2025-01-01T00-00-00.1.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        task = only(run(tmp_path / name, tmp_path / f"{name}-out", "lm-eval")).tasks
        assert task["news_knowmem_f"].version == version


def test_open_unlearning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recall = "rougeL_recall"  # of stems there, which we have not: held against nothing

    def block(figure: str) -> dict[str, object]:
        rows = {
            str(i): {"input": "q", "ground_truth": gt, "generation": out, figure: 0.5, recall: 0.1}
            for i, (out, gt) in enumerate(STEMS)
        }
        return {"agg_value": 0.5, "value_by_index": rows}

    leak = {
        split: {"agg_value": 1, "value_by_index": {str(i): {"score": s} for i, s in enumerate(x)}}
        for split, x in {"forget": [1.0, 3.0], "holdout": [2.0, 4.0]}.items()
    }
    content = {
        "forget_knowmem_ROUGE": block("rougeL_f1"),
        "retain_knowmem_ROUGE": {"agg_value": 0.5},
        # Theirs: 3 of the 4 pairs have the lower score on the side of the forget text.
        "mia_min_k": {**leak, "auc": 0.75, "agg_value": 0.75},
        "extraction_strength": {"agg_value": 0.1},
    }
    write(tmp_path / "saves/model/MUSE_EVAL.json", content)
    with caplog.at_level("INFO", logger="unlearnbench"):
        result = only(run(tmp_path / "saves", tmp_path, "open-unlearning"))
    assert set(result.tasks) == {"news_knowmem_f", "news_privleak"}
    assert result.tasks["news_privleak"].auc == pytest.approx(0.25)
    assert result.imported is not None
    assert result.imported.stated["news_knowmem_f/mean_rougeL_stem"] == 0.5
    assert result.imported.stated["news_privleak/auc_Min-40%"] == 0.25
    # By stems the first answer scores 1, and the second 0.5, as stated; by words both have 0.
    where = "news_knowmem_f/forget_qa/0/rougeL_stem"
    assert result.imported.differences == {
        where: pytest.approx(0.5),
        "news_knowmem_f/mean_rougeL_stem": pytest.approx(0.25),
    }
    assert "extraction_strength is skipped" in caplog.text
    assert "states no single answers" in caplog.text


NO_SCORES: list[tuple[dict[str, Any], str]] = [
    ({}, "forget/0: Min-40% is no finite number"),
    ({"Min-40%": math.nan}, "forget/0: Min-40% is no finite number"),
    ({"Min-40%": 1.0, "Min-5%": math.inf}, "forget/0: Min-5% is no finite number"),
    ({"Min-40%": 1.0, "Min-5%": None}, "forget/0: Min-5% is no finite number"),
]
BAD: list[tuple[str, object, str]] = [
    ("knowmem/out/bbc/m/forget/history.json", [], "expected a list of answers"),
    ("knowmem/out/bbc/m/forget/history.json", ["x"], "answer 0 is no object"),
    ("knowmem/out/bbc/m/forget/history.json", [math.nan], "answer 0 is no object"),
    ("knowmem/out/bbc/m/forget/history.json", [{"gt": "a"}], "lacks its output"),
    ("knowmem/out/bbc/m/forget/history.json", [{"gt": 7, "response": ""}], "lacks its output"),
    ("knowmem/out/bbc/m/forget/history.json", [{"gt": "!", "response": "a"}], "no letter"),
    ("m/privleak/log.json", [], "expected texts by split"),
    ("m/privleak/log.json", {"forget": texts(SCORES)}, "no texts of holdout"),
    ("m/privleak/log.json", {"forget": [{}], "holdout": [{}]}, "has no attack scores"),
    (
        "m/privleak/log.json",
        {"forget": texts([{"PPL": "x"}]), "holdout": []},  # type: ignore[dict-item]
        "PPL is no finite number",
    ),
    *(
        ("m/privleak/log.json", {"forget": [{"PPL": 1.0} | s], "holdout": []}, says)
        for s, says in NO_SCORES
    ),
]


@pytest.mark.field(
    "Data, files, commands", "import, NaN in the headline attack, or an infinity", "refused"
)
@pytest.mark.parametrize(("file", "content", "words"), BAD)
def test_bad_files_are_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    content: object,
    words: str,
) -> None:
    write(tmp_path / "in" / file, content)
    arguments = ["--format", "muse", "--task-prefix", "news", "--out", str(tmp_path / "out")]
    assert call("import", str(tmp_path / "in"), *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert words in error


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\xff"])
def test_broken_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "in/knowmem/out/bbc/m/forget/history.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UnlearnbenchError, match="JSON"):
        run(tmp_path / "in", tmp_path)


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_to_import_is_said(tmp_path: Path, kind: Format) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnlearnbenchError, match=f"holds no {kind} results"):
        run(tmp_path / "empty", tmp_path, kind)
    with pytest.raises(UnlearnbenchError, match="no such folder"):
        run(tmp_path / "nowhere", tmp_path, kind)


def test_other_refusals(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(first, tmp_path)
    with pytest.raises(UnlearnbenchError, match="holds a run already"):
        run(first, tmp_path)
    with pytest.raises(UnlearnbenchError, match="MUSE has news and books"):
        run(first, tmp_path, prefix="demo")
    ends = ["--task-prefix", "news", "--out", str(tmp_path / "o"), "--format", "muse"]
    assert call("import", str(first), *ends, "--quant", "../x") == 2
    assert "takes a condition's name" in capsys.readouterr().err


def test_an_alias_is_written_in_full(first: Path, tmp_path: Path) -> None:
    out = tmp_path / "named"
    ends = ["--task-prefix", "news", "--out", str(out), "--format", "muse", "--quant", "4bit"]
    assert call("import", str(first), *ends) == 0
    assert (out / "ga/step=102/bnb-fp4/run.json").is_file()
