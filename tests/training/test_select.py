"""The checkpoint that is kept, from the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import Toy
from tests.tasks.kinds.test_generate_blank import with_second
from unlearnbench.checkpoints.origin import Selection
from unlearnbench.evaluation import score as scoring
from unlearnbench.training import trainer
from unlearnbench.training.output import OutputFolder


def select(
    toy: Toy, out: Path, score: str, *more: str, tasks: str = "toy_knowmem_f"
) -> dict[str, object]:
    """Unlearn with an evaluation after every step; returns what the record says of it."""
    shared = ["--data-dir", str(toy.data), "--include-path", str(toy.tasks), "--out", str(out)]
    options = ["--eval-tasks", tasks, "--eval-steps", "2"]
    assert call(*more, *shared, *options, "--retrained", score, "--max-steps", "5") == 0
    selection: dict[str, object] = json.loads((out / "unlearning.json").read_bytes())["selection"]
    return selection


def test_selection_keeps_the_first_checkpoint_at_or_below_the_retrained_models_score(
    toy: Toy, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = select(toy, tmp_path / "all", "100", *quick)
    assert first["chosen_step"] == 2
    assert first["reached"] is True
    assert (first["task"], first["rows"]) == ("toy_knowmem_f", "all")
    both = "toy_verbmem,toy_knowmem_f"
    never = select(toy, tmp_path / "never", "-1", *quick, tasks=both)
    assert never["reached"] is False
    evaluated = never["evaluated"]
    assert isinstance(evaluated, list)
    assert [entry["step"] for entry in evaluated] == [2, 4, 5]
    assert all(set(e["scores"]) == {"toy_verbmem", "toy_knowmem_f"} for e in evaluated)
    assert "no checkpoint brought toy_knowmem_f to -1.0" in capsys.readouterr().err
    steps = json.loads((tmp_path / "all/unlearning.json").read_bytes())["losses"]
    assert len(steps) == 2, "training stops there"
    assert call(*quick, "--out", str(tmp_path / "two"), "--max-steps", "2") == 0
    kept, plain = (tmp_path / name / "model.safetensors" for name in ("all", "two"))
    assert kept.read_bytes() == plain.read_bytes(), "the weights are those of the chosen step"


def test_evaluations_before_an_interruption_stay_in_the_record(
    toy: Toy,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = select(toy, tmp_path / "whole", "-1", *quick)
    out = tmp_path / "parts"
    resumed = [*quick, "--save-steps", "3"]
    step = trainer.UnlearnTrainer.training_step

    def interrupt(self: Any, *given: Any) -> Any:
        if self.state.global_step == 4:
            raise KeyboardInterrupt
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.UnlearnTrainer, "training_step", interrupt)
        with pytest.raises(AssertionError):
            select(toy, out, "-1", *resumed)
    kept = out / ".training/evaluated/evaluated.json"
    assert [entry["step"] for entry in json.loads(kept.read_bytes())] == [2, 4]
    evaluated = kept.read_bytes()
    kept.write_text("[{", encoding="utf-8")
    with pytest.raises(AssertionError):
        select(toy, out, "-1", *resumed, "--resume")
    assert "evaluated.json cannot be read" in capsys.readouterr().err.splitlines()[-1]
    kept.write_bytes(evaluated)
    assert select(toy, out, "-1", *resumed, "--resume") == whole, "2 is kept, 4 comes again"
    assert [entry["step"] for entry in whole["evaluated"]] == [2, 4, 5]  # type: ignore[attr-defined]


def test_what_is_to_survive_conditions_is_chosen_at_them(
    toy: Toy, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rule is met where the worst of all conditions meets it: here rtn-int4 at the second."""
    asked = []
    score = scoring.score_checkpoint

    def worse(*given: Any) -> Any:
        asked.append(given[4:])
        plain, there = score(*given)
        task = there.tasks["toy_knowmem_f"]
        value = 100.0 if len(asked) == 1 else -1.0
        return [
            plain,
            there.model_copy(
                update={"tasks": {"toy_knowmem_f": task.model_copy(update={"value": value})}}
            ),
        ]

    monkeypatch.setattr(scoring, "score_checkpoint", worse)
    found: Any = select(toy, tmp_path / "out", "99", *quick, "--survive", "rtn-int4")
    assert asked == [("none", "rtn-int4")] * 2
    assert (found["chosen_step"], found["reached"]) == (4, True)
    assert [e["conditions"]["rtn-int4"]["toy_knowmem_f"] for e in found["evaluated"]] == [100, -1]
    assert found["evaluated"][0]["scores"]["toy_knowmem_f"] <= 99, "in full precision it was met"
    assert found["rule"].endswith("retrained model's, at rtn-int4 too")
    assert str(Selection.model_validate(found)) == "toy_knowmem_f, all rows, at rtn-int4 too"


def test_a_chosen_step_is_no_checkpoint_to_go_on_from(
    toy: Toy, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted between the choice and the end, a training comes by the same step again."""
    select(toy, tmp_path / "whole", "100", *quick)

    def fail(*given: Any) -> None:
        raise KeyboardInterrupt

    out, options = tmp_path / "parts", [*quick, "--save-steps", "1"]
    with monkeypatch.context() as patch:
        patch.setattr(OutputFolder, "save", fail)
        with pytest.raises(AssertionError):
            select(toy, out, "100", *options)
    assert select(toy, out, "100", *options, "--resume")["chosen_step"] == 2
    ours, theirs = (folder / "model.safetensors" for folder in (out, tmp_path / "whole"))
    assert ours.read_bytes() == theirs.read_bytes()


def test_the_retrained_models_run_gives_the_threshold(
    toy: Toy, tiny: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("--model", str(tiny), "--tasks", "toy_knowmem_f", *toy.arguments) == 0
    (run,) = toy.out.glob("tiny-*/none")
    value = json.loads((run / "run.json").read_bytes())["tasks"]["toy_knowmem_f"]["value"]
    found = select(toy, tmp_path / "out2", str(run), *quick)
    assert found["threshold"] == value
    arguments = [*quick, "--eval-tasks", "demo_knowmem_f", "--out", str(tmp_path / "x")]
    assert call(*arguments, "--retrained", str(run)) == 2
    assert "has no score for demo_knowmem_f" in capsys.readouterr().err
    assert call(*arguments, "--retrained", str(tmp_path)) == 2
    assert "no run.json there" in capsys.readouterr().err


def test_the_threshold_is_over_the_rows_that_the_models_under_training_are_scored_on(
    toy: Toy, tiny: Path, quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--data-dir", str(toy.data), "--include-path", str(toy.tasks)]
    runs = tmp_path / "runs"
    asked = ["--model", str(tiny), "--tasks", "toy_verbmem", *shared, "--output", str(runs)]
    assert call(*asked) == 0
    (run,) = runs.glob("tiny-*/none")
    file = run / "samples/toy_verbmem.jsonl"
    records = [json.loads(line) for line in file.read_bytes().splitlines()]
    for number, record in enumerate(records):  # the model scores 0; this one knows later rows
        record["score"] = number / len(records)
    file.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="ascii")
    result = json.loads((run / "run.json").read_bytes())
    own = result["tasks"]["toy_verbmem"]
    own["value"] = 100 * sum(r["score"] for r in records) / len(records)
    own["records_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    (run / "run.json").write_text(json.dumps(result), encoding="ascii")
    assert len(records) > 2
    both = ["--select-task", "toy_verbmem", "--eval-limit", "2"]
    found = select(toy, tmp_path / "a", str(run), *quick, *both, tasks="toy_verbmem")
    assert found["threshold"] == pytest.approx(100 * (0 + 1 / len(records)) / 2)
    assert found["rows"] == 2
    found = select(toy, tmp_path / "b", str(run), *quick, *both[:2], tasks="toy_verbmem")
    assert found["threshold"] == own["value"]
    for part in own["data"]:
        part["split"] = "another"
    (run / "run.json").write_text(json.dumps(result), encoding="ascii")
    arguments = [*quick, *shared, "--eval-tasks", "toy_verbmem", "--out", str(tmp_path / "d")]
    assert call(*arguments, "--retrained", str(run), *both) == 2
    assert "has a score of all its texts only" in capsys.readouterr().err
    select(toy, tmp_path / "c", "100", *quick, *both, tasks="toy_verbmem")
    assert "that score has to be one of the same first 2 rows" in capsys.readouterr().err
    few = tmp_path / "few"
    assert call(*asked[:-1], str(few), "--limit", "1") == 0
    (short,) = few.glob("tiny-*/none")
    assert call(*arguments, "--retrained", str(short), *both) == 2
    assert "1 of the 2 rows that models under training" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_evaluations_come_once_an_epoch_whatever_ends_the_training(
    toy: Toy, quick: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shared = ["--data-dir", str(toy.data), "--include-path", str(toy.tasks), "--out", str(out)]
    more = ["--eval-tasks", "toy_knowmem_f", "--retrained", "-1", "--max-steps", "5"]
    assert call(*quick, *shared, *more) == 0
    record = json.loads((out / "unlearning.json").read_bytes())
    epoch = -(-record["sequences"]["forget"] // record["options"]["batch_size"])
    steps = [entry["step"] for entry in record["selection"]["evaluated"]]
    assert steps == sorted({*range(epoch, 6, epoch), 5})
    assert len(steps) > 1


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--eval-tasks", "toy_knowmem_f", "--retrained", "nan"], "use a run folder or a score"),
        (
            ["--eval-tasks", "toy_knowmem_f", "--retrained", "5", "--eval-steps", "0"],
            "--eval-steps 0",
        ),
        (
            ["--eval-tasks", "toy_knowmem_f", "--retrained", "5", "--eval-limit", "-1"],
            "--eval-limit -1",
        ),
        (["--eval-steps", "5"], "--eval-steps is for --eval-tasks, which is missing"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused_before_training(
    toy: Toy,
    quick: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    words: str,
) -> None:
    shared = ["--data-dir", str(toy.data), "--include-path", str(toy.tasks)]
    assert call(*quick, *shared, "--out", str(tmp_path / "out"), *more) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.field(
    "Prompts and tokenizers",
    "versions 1 and 2 of a task compared, resumed, or as reference",
    "refused",
)
def test_the_retrained_models_score_is_of_the_version_that_is_scored_in_training(
    toy: Toy, quick: list[str], tmp_path: Path, tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with_second(toy)
    runs, blank = ["--output", str(tmp_path / "runs")], ["--answer-blank", "prompt"]
    tasks = ["--tasks", "toy_knowmem_f", *toy.arguments[:4], "--dtype", "fp32"]
    assert call("--model", str(tiny), *tasks, *runs, *blank) == 0
    (run,) = (path.parent for path in (tmp_path / "runs").glob("*/none/run.json"))
    with pytest.raises(AssertionError):
        select(toy, tmp_path / "auto", str(run), *quick)
    said = capsys.readouterr().err.splitlines()[-1]
    assert "toy_knowmem_f is of version 1 there, and models under training are scored on 2" in said
    chosen = select(toy, tmp_path / "prompt", str(run), *quick, *blank)
    assert chosen["task"] == "toy_knowmem_f"
    assert "prompt ends at the colon" not in capsys.readouterr().err
    select(toy, tmp_path / "second", "100", *quick)
    assert "prompt ends at the colon" in capsys.readouterr().err
