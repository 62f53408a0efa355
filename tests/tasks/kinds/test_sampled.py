"""Several answers to each prompt: what is drawn, what a record keeps, and a board of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from tests.cli.test_main import call
from tests.conftest import TOY_TASKS, MakeCheckpoint, Toy
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.errors import MetricError, OptionError, PrecisionError
from unlearnbench.metrics.leak import leak_at_k
from unlearnbench.requests import Generated
from unlearnbench.runs.entries import (
    Entry,
    LoadedRun,
    require_alike,
    require_comparable,
    samples_answers,
)
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.kinds.sampled import TASK, SampledTask
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, load_samples
from unlearnbench.tasks.spec import Sample

PLAIN = {"task": "toy_drawn", **yaml.safe_load(TOY_TASKS["toy_knowmem_f"])}
DRAWS = {"max_gen_toks": 8, "do_sample": True, "temperature": 0.9, "until": ["\n\n", "Question:"]}
FILE: dict[str, Any] = {
    **{k: v for k, v in PLAIN.items() if k != "output_type"},
    **{"output_type": "generate_sampled", "repeats": 4, "generation_kwargs": DRAWS},
}
SPEC: SampledTask = TASK.model_validate(FILE)


def answers(*texts: str) -> list[Generated]:
    return [Generated(f"toy_drawn:forget_qa/0:{n}", text, 2) for n, text in enumerate(texts)]


def record(*texts: str) -> Any:
    return SPEC.record(Sample("forget_qa/0", "forget_qa", "Which?", "gate 0"), answers(*texts))


def put(toy: Toy, name: str, content: dict[str, Any]) -> Path:
    folder = toy.tasks.parent / name
    folder.mkdir()
    (folder / "toy_drawn.yaml").write_text(yaml.safe_dump(content))
    return folder


def run(toy: Toy, tiny: Path, name: str, content: dict[str, Any], condition: str) -> Path:
    out = toy.tasks.parent / f"{name}-out"
    line = ["--model", str(tiny), "--conditions", condition, "--tasks", "toy_drawn"]
    line += ["--data-dir", str(toy.data), "--include-path", str(put(toy, name, content))]
    assert call(*line, "--dtype", "fp32", "--output", str(out)) == 0
    (found,) = out.glob(f"*/{condition}")
    return found


def records(folder: Path) -> list[Any]:
    found = read_run(folder).tasks["toy_drawn"].records_sha256
    return list(RunFolder(folder).read_records("toy_drawn", found))


def test_the_draws_are_those_of_the_condition_of_as_many(toy: Toy, tiny: Path) -> None:
    """``sample-4`` over the same questions, asked by another part of the package."""
    kind = run(toy, tiny, "kind", FILE, "none")
    condition = run(toy, tiny, "condition", PLAIN, "sample-4-t0.9")
    drawn = [tuple(r.facts["drawn"]) for r in records(kind)]
    assert drawn == [r.asked.scores for r in records(condition)]
    assert len({text for r in records(kind) for text in r.facts["outputs"]}) > 1
    result = read_run(kind).tasks["toy_drawn"]
    assert result.value == pytest.approx(100 * fmean(map(fmean, drawn)))
    assert result.scores["best"] == pytest.approx(100 * fmean(map(max, drawn)))
    assert result.leak == read_run(condition).tasks["toy_drawn"].leak


def test_what_a_condition_draws_compares_with_what_is_not_drawn(toy: Toy, tiny: Path) -> None:
    """Its seed stands in its name, and the run's moves nothing."""
    whole, drawn = (
        LoadedRun(folder, read_run(folder))
        for folder in (run(toy, tiny, c, PLAIN, c) for c in ("none", "sample-4-t0.9"))
    )
    assert drawn.result.tasks["toy_drawn"].leak is not None
    require_comparable(drawn, whole, ["toy_drawn"])
    settings = drawn.result.settings.model_copy(update={"seed": 7})
    other = replace(drawn, result=drawn.result.model_copy(update={"settings": settings}))
    require_alike(Entry("x", {"none": whole, "sample-4-t0.9": other}))


def test_runs_of_two_seeds_do_not_compare(toy: Toy, tiny: Path) -> None:
    """Other draws are another measurement; of greedy tasks the seed moves nothing."""
    greedy = {**PLAIN, "task": "toy_drawn"}
    for name, content, said in (("drawn", FILE, "seed of its draws is 0"), ("greedy", greedy, "")):
        one = LoadedRun(run(toy, tiny, name, content, "none"), read_run(_of(toy, name)))
        settings = one.result.settings.model_copy(update={"seed": 7})
        two = replace(one, result=one.result.model_copy(update={"settings": settings}))
        assert samples_answers(one.result) is bool(said)
        entry = Entry("x", {"none": one, "bf16": two})
        if not said:
            require_comparable(two, one, ["toy_drawn"])
            require_alike(entry)
            continue
        with pytest.raises(OptionError, match=f"toy_drawn: {said} there and 7 here"):
            require_comparable(two, one, ["toy_drawn"])
        with pytest.raises(OptionError, match="seed 0 and .* with 7"):
            require_alike(entry)


def _of(toy: Toy, name: str) -> Path:
    (found,) = (toy.tasks.parent / f"{name}-out").glob("*/none")
    return found


def test_a_record_keeps_every_answer() -> None:
    made = record("gate 0", "gate 1", "", "gate 0")
    assert made.facts["drawn"] == [1.0, 0.5, 0.0, 1.0]
    assert (made.score, made.scores) == (0.625, {"best": 1.0, "worst": 0.0})
    found = SPEC.summarize([made], None, 0)
    assert found["empty_outputs"] == 1
    leak: Any = found["leak"]
    assert leak["leak"]["2"] == pytest.approx(100 * leak_at_k(4, 3, 2))
    assert all(ours == stated for stated, ours in SPEC.rescore(made).values())


def test_a_score_that_its_text_does_not_give_shows() -> None:
    made = record("gate 0", "gate 1", "x", "y")
    facts = {**made.facts, "drawn": [0.0, 0.5, 0.0, 0.0]}
    changed = made.model_copy(update={"facts": facts, "score": 0.125})
    found = SPEC.rescore(changed)
    assert found["answer 0"] == (0.0, 1.0)
    assert found["best"] == (1.0, 0.5)
    digest = "sha256:" + 64 * "0"
    hidden = made.with_texts(lambda _: digest)
    assert set(SPEC.rescore(hidden)) == {"rougeL", "best", "worst"}
    for bad in ({"outputs": ["a", "b"], "drawn": [0.0, 0.0]}, {"drawn": [0.0] * 3}, {"x": 1}):
        with pytest.raises(MetricError):
            SPEC.rescore(made.model_copy(update={"facts": {**made.facts, **bad}}))
    with pytest.raises(MetricError, match="words, which no run"):
        SPEC.rescore(record("a", "b", "c", "d " * 5000))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"repeats": 1}, "repeats"),
        ({"repeats": 1001}, "repeats"),
        ({"generation_kwargs": {"max_gen_toks": 8}}, "do_sample: it must be true"),
    ],
)
def test_a_bad_file_is_one_line(
    toy: Toy, tiny: Path, change: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = put(toy, "bad", {**FILE, **change})
    line = ["--model", str(tiny), "--tasks", "toy_drawn", "--include-path", str(folder)]
    assert call(*line, "--data-dir", str(toy.data), "--output", str(toy.out)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_conditions_that_ask_otherwise_do_not_fit(toy: Toy, tiny: Path) -> None:
    folder = put(toy, "kind", FILE)
    where: dict[str, Any] = {"data_dir": toy.data, "output": toy.out}
    with pytest.raises(PrecisionError, match="none of these tasks"):
        evaluate(str(tiny), "toy_drawn", "sample-4", include_path=[folder], **where)
    with pytest.raises(MetricError, match="3 texts of 4"):
        record("a", "b", "c")
    with pytest.raises(OptionError, match="temperature"):
        SPEC.with_decoding({"temperature": -1.0})
    for greedy in ({"temperature": 0}, {"temperature": 0.0}, {"do_sample": False}):
        with pytest.raises(OptionError, match="toy_drawn draws its answers"):
            SPEC.with_decoding(greedy)
    assert SPEC.with_decoding({"temperature": 2.0}).generation_kwargs.temperature == 2.0


RULES: dict[str, Any] = {
    "title": "Drawn",
    "description": "Toy.",
    "base_model": "none",
    "utility_floor": 0.5,
}
RULES |= {"tasks": {"toy_drawn": 1.0, "toy_drawn_r": 1.0}, "ranking": ["toy_drawn"]}
RULES |= {"precisions": ["none"], "min_samples": 3}


def test_its_board_has_a_table_and_a_page(toy: Toy, tmp_path: Path) -> None:
    """The target answers all, the retrained model nothing to forget, the third what it kept."""
    folder, board = put(toy, "tasks", FILE), tmp_path / "board"
    keep = {**FILE, "task": "toy_drawn_r", "want": "high"}
    (folder / "toy_drawn_r.yaml").write_text(yaml.safe_dump(keep))
    asked = load_samples(load_registry([folder]).tasks["toy_drawn"], DataOptions(toy.data))
    right = {sample.text: sample.target for sample in asked.samples}
    known = {"target": 3, "retrained": 1, "ga_gdr": 2}
    board.mkdir()
    (board / "board.yaml").write_text(yaml.safe_dump({**RULES, "publish_texts": True}))
    for name, many in known.items():
        said = {p: text if n < many else "nobody" for n, (p, text) in enumerate(right.items())}
        where: dict[str, Any] = {"data_dir": toy.data, "output": toy.out / name}
        model = ScriptedModel(outputs=said, name=name)
        evaluate(model, ["toy_drawn", "toy_drawn_r"], include_path=[folder], **where)
    folder.rename(board / "tasks")
    for name in known:
        add = ["leaderboard", "add", str(toy.out / name), "--board", str(board), "--name", name]
        assert call(*add, *(["--role", name] if name != "ga_gdr" else [])) == 0
    assert call("leaderboard", "build", str(board)) == 0
    page, table = ((board / name).read_text() for name in ("index.html", "README.md"))
    assert "toy_drawn" in page
    assert "nobody" in page, "the page shows what was drawn"
    ranked = next(line for line in table.splitlines() if line.startswith("| 1 (1 to 1)"))
    assert "33.3 [" in ranked, "what it says beyond the retrained model"


@pytest.mark.parametrize("texts", [True, False])
def test_a_board_of_it_verifies(
    toy: Toy, tiny: Path, make_checkpoint: MakeCheckpoint, tmp_path: Path, texts: bool
) -> None:
    tasks, board = put(toy, "tasks", FILE), tmp_path / "board"
    keep = {**FILE, "task": "toy_drawn_r", "want": "high"}
    (tasks / "toy_drawn_r.yaml").write_text(yaml.safe_dump(keep))
    models = {"target": tiny, "retrained": make_checkpoint("retrained", "bfloat16")}
    for name, model in models.items():
        line = ["--model", str(model), "--tasks", "toy_drawn,toy_drawn_r", "--dtype", "fp32"]
        line += ["--data-dir", str(toy.data), "--include-path", str(tasks)]
        assert call(*line, "--output", str(toy.out / name)) == 0
    board.mkdir()
    tasks.rename(board / "tasks")
    (board / "board.yaml").write_text(yaml.safe_dump({**RULES, "publish_texts": texts}))
    for name in models:
        (runs,) = (toy.out / name).glob("*")
        add = ["leaderboard", "add", str(runs), "--board", str(board), "--name", name]
        assert call(*add, "--role", name, *([] if texts else ["--no-texts"])) == 0
    assert call("leaderboard", "verify", str(board)) == 0
    entry = board / "entries/target.json"
    assert ("Which gate" in entry.read_text()) is texts
    if texts:
        content = entry.read_text()
        entry.write_text(content.replace("gate 0", "gate 9"))
        assert call("leaderboard", "verify", str(board)) == 1
