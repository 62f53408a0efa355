"""Several answers to each prompt: what is drawn, what a record keeps, and a board of it."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from tests.cli.test_main import call
from tests.conftest import TOY_TASKS, MakeCheckpoint, Toy
from unlearnbench.errors import MetricError, OptionError, PrecisionError
from unlearnbench.metrics.leak import leak_at_k
from unlearnbench.requests import Generated
from unlearnbench.runs.folder import RunFolder, read_run
from unlearnbench.tasks.kinds.sampled import TASK, SampledTask
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
    from unlearnbench import evaluate

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
    rules = {"title": "Drawn", "description": "Toy.", "base_model": "none", "utility_floor": 0.5}
    rules |= {"tasks": {"toy_drawn": 1.0, "toy_drawn_r": 1.0}, "ranking": ["toy_drawn"]}
    rules |= {"precisions": ["none"], "min_samples": 3, "publish_texts": texts}
    (board / "board.yaml").write_text(yaml.safe_dump(rules))
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
