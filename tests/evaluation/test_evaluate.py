from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.conftest import Toy
from tests.util.test_process import Terminal
from unlearnbench import RunResult, ScriptedModel, evaluate
from unlearnbench.errors import (
    EvaluationError,
    MetricError,
    ModelOutputError,
    OptionError,
    ResultError,
    TaskError,
    UnlearnbenchError,
)
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.outcome import evaluation_summary
from unlearnbench.requests import Generate, Generated, Score, Scored
from unlearnbench.results import GenerationRecord, LikelihoodRecord, SampleRecord
from unlearnbench.runs.fingerprint import package_version
from unlearnbench.runs.folder import RunFolder, model_folder_name, read_run

SHOTS = (
    "Question: Which gate is 3?\nAnswer: gate 3\n\nQuestion: Which gate is 4?\nAnswer: gate 4\n\n"
)
# Non-member below member: level 1: (0.5), level 2: (0.5, 1.5), level 3: all three. 6 of 9 pairs.
MEMBERS, OTHERS = (1.0, 2.0, 3.0), (1.5, 2.5, 0.5)
AUC = 6 / 9
# The retrained model: 0 + (1 and a tie) + (1 and a tie) of 9.
RETRAINED = ((1.0, 2.0, 2.0), (2.0, 1.0, 4.0))
RETRAINED_AUC = (0.5 + 1.5 + 1.5) / 9


class Spy(ScriptedModel):
    """Notes what it was asked, and refuses requests whose id begins with ``refuse``."""

    asked: list[str]
    refuse = "nothing"

    def note(self, requests: Sequence[Generate] | Sequence[Score]) -> None:
        self.asked = [*getattr(self, "asked", []), *(r.id for r in requests)]
        if any(r.id.startswith(self.refuse) for r in requests):
            raise ModelOutputError(f"refused {self.refuse}")

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        self.note(requests)
        return super().generate(requests, skip)

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        self.note(requests)
        return super().score(requests, skip)


class Backwards(Spy):
    """Answers in reverse order, as a model that sorts by length may."""

    def generate(
        self, requests: Sequence[Generate], skip: Collection[str] = ()
    ) -> Iterator[Generated]:
        return reversed(list(super().generate(requests, skip)))

    def score(self, requests: Sequence[Score], skip: Collection[str] = ()) -> Iterator[Scored]:
        return reversed(list(super().score(requests, skip)))


def rows(toy: Toy, file: str) -> list[dict[str, str]]:
    path = toy.data / "toy" / "set" / file
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def gate_prompt(n: int) -> str:
    return f"{SHOTS}Question: Which gate is {n}?\nAnswer: "


def verbmem_outputs(toy: Toy) -> dict[str, str]:
    """All of the target, nothing, and its first four words."""
    found = rows(toy, "verbmem/forget.jsonl")
    answers = [found[0]["gt"], "", " ".join(found[2]["gt"].split(" ")[:5])]
    return {row["prompt"]: answer for row, answer in zip(found, answers, strict=True)}


KNOWMEM_OUTPUTS = {
    gate_prompt(0): "gate 0\n\nQuestion: Which gate is 9?",
    gate_prompt(1): "gate 7",
    gate_prompt(2): "none",
}


def levels(
    toy: Toy, members: Sequence[float] = MEMBERS, others: Sequence[float] = OTHERS, n: int = 25
) -> dict[str, list[float]]:
    """The same log-probability for every token of a text, so every attack's score is the level."""
    texts = [row["text"] for s in ("forget", "holdout") for row in rows(toy, f"privleak/{s}.jsonl")]
    found = {text: [-level] * n for text, level in zip(texts, [*members, *others], strict=True)}
    lowered = {text.lower(): [-4.0] * n for text in texts}
    return lowered | found


def script(
    toy: Toy,
    members: Sequence[float] = MEMBERS,
    others: Sequence[float] = OTHERS,
    *,
    name: str = "unlearned",
    kind: type[Spy] = Spy,
    precision: str = "none",
) -> Spy:
    model = kind(
        verbmem_outputs(toy) | KNOWMEM_OUTPUTS,
        levels(toy, members, others),
        name=name,
        precision=precision,
    )
    model.asked = []
    return model


def run(model: ScriptedModel, tasks: str, toy: Toy, **options: Any) -> RunResult:
    (result,) = evaluate(model, tasks, **(toy.options | options))
    return result


def run_dir(toy: Toy, model: ScriptedModel) -> Path:
    return toy.out / model_folder_name(model.checkpoint) / model.condition.name


def retrained_run(toy: Toy, **options: Any) -> Path:
    model = script(toy, *RETRAINED, name="retrained")
    run(model, "toy_privleak", toy, **options)
    return run_dir(toy, model)


def records(toy: Toy, model: ScriptedModel, task: str) -> list[SampleRecord]:
    folder = RunFolder(run_dir(toy, model))
    return folder.read_records(task, read_run(folder.path).tasks[task].records_sha256)


def generations(toy: Toy, model: ScriptedModel, task: str) -> list[GenerationRecord]:
    found = records(toy, model, task)
    assert all(isinstance(record, GenerationRecord) for record in found)
    return [record for record in found if isinstance(record, GenerationRecord)]


def edit_task(toy: Toy, task: str, old: str, new: str) -> None:
    path = toy.tasks / f"{task}.yaml"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def write_rows(toy: Toy, file: str, found: Sequence[Mapping[str, str]]) -> None:
    path = toy.data / "toy" / "set" / file
    path.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname}: {record.getMessage()}")


@contextmanager
def logged() -> Iterator[list[str]]:
    """Lines logged inside the block, whatever the command line did to the logger before."""
    logger, handler = logging.getLogger("unlearnbench"), _Lines()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def words(text: str) -> int:
    return len(re.findall("[a-z0-9]+", text.lower()))


def test_verbmem_is_the_mean_rouge_of_hand_computed_scores(toy: Toy) -> None:
    model = script(toy)
    result = run(model, "toy_verbmem", toy).tasks["toy_verbmem"]
    third = rows(toy, "verbmem/forget.jsonl")[2]["gt"]
    target = " ".join(third.split(" ")[:16])
    recall = words(" ".join(third.split(" ")[:5])) / words(target)
    scores = [1.0, 0.0, 2 * recall / (1 + recall)]  # the first words: precision 1
    assert [r.score for r in generations(toy, model, "toy_verbmem")] == pytest.approx(scores)
    assert result.value == pytest.approx(100 * sum(scores) / 3)
    assert result.n == 3
    assert result.scores["rougeL_recall"] == pytest.approx(100 * (1 + 0 + recall) / 3)
    mean = sum(scores) / 3
    spread = (sum((s - mean) ** 2 for s in scores) / 2) ** 0.5
    assert result.stderr == pytest.approx(100 * spread / 3**0.5)
    assert result.ci is not None
    assert 0 <= result.ci[0] <= 100 * mean <= result.ci[1] <= 100
    assert (result.metric, result.want, result.version) == ("rougeL", "low", 1.0)
    assert result.auc is None


def test_knowmem_has_its_shots_and_stops_at_the_next_question(toy: Toy) -> None:
    model = script(toy)
    result = run(model, "toy_knowmem_f", toy).tasks["toy_knowmem_f"]
    found = generations(toy, model, "toy_knowmem_f")
    assert [r.prompt for r in found] == [gate_prompt(n) for n in range(3)]
    assert [r.output for r in found] == ["gate 0", "gate 7", "none"]
    assert [r.target for r in found] == ["gate 0", "gate 1", "gate 2"]
    assert [r.score for r in found] == [1.0, 0.5, 0.0]
    assert result.value == pytest.approx(50.0)


def test_records_hold_everything_and_stand_in_row_order(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem,toy_privleak", toy)
    verbmem = generations(toy, model, "toy_verbmem")
    assert [r.id for r in verbmem] == ["forget/0", "forget/1", "forget/2"]
    texts = rows(toy, "verbmem/forget.jsonl")
    assert [r.prompt for r in verbmem] == [row["prompt"] for row in texts]
    assert verbmem[1].output == ""
    assert verbmem[1].n_tokens == 0
    leak = records(toy, model, "toy_privleak")
    assert [r.id for r in leak] == [f"{s}/{i}" for s in ("forget", "holdout") for i in range(3)]
    for record, level in zip(leak, [*MEMBERS, *OTHERS], strict=True):
        assert isinstance(record, LikelihoodRecord)
        assert record.split == record.id.split("/")[0]
        assert record.n_tokens == 25
        assert record.scores["Min-40%"] == pytest.approx(level)
        assert record.scores["Min-40%++"] == pytest.approx(level - 1)


@pytest.mark.parametrize("task", ["toy_verbmem", "toy_knowmem_f", "toy_privleak"])
def test_the_order_of_answers_does_not_matter(toy: Toy, task: str) -> None:
    model, backwards = script(toy), script(toy, kind=Backwards)
    plain = run(model, task, toy)
    turned = run(backwards, task, toy, output=toy.out / "turned")
    assert turned.tasks == plain.tasks  # the hash of the records included


def test_without_a_reference_there_is_an_auc_no_value_and_a_word_on_what_to_do(toy: Toy) -> None:
    with logged() as lines:
        result = run(script(toy), "toy_privleak", toy).tasks["toy_privleak"]
    assert result.auc == pytest.approx(AUC)
    assert result.auc_ci is not None
    assert 0 <= result.auc_ci[0] <= AUC <= result.auc_ci[1] <= 1
    assert result.auc_stderr is not None
    assert result.auc_stderr > 0
    assert result.attack == "Min-40%"
    assert result.attacks is not None
    assert len(result.attacks) == 2 + 2 * 7
    assert result.attacks["Min-40%"].auc == result.auc
    assert result.attacks["PPL"].auc == pytest.approx(AUC)
    assert (result.value, result.stderr, result.ci, result.auc_reference) == (None,) * 4
    (line,) = [line for line in lines if "no PrivLeak value" in line]
    assert line.startswith("WARNING: toy_privleak")
    assert "--reference RUN_DIR" in line
    assert "stated" not in line, "the task states none"
    assert "same command" in line


def test_with_the_retrained_run_privleak_is_as_by_hand(toy: Toy) -> None:
    reference = retrained_run(toy)
    with logged() as lines:
        result = run(script(toy), "toy_privleak", toy, reference=reference).tasks["toy_privleak"]
    assert result.value == pytest.approx((AUC - RETRAINED_AUC) / RETRAINED_AUC * 100)
    assert result.auc == pytest.approx(AUC)
    stored = read_run(reference)
    assert result.auc_reference is not None
    assert result.auc_reference.auc == pytest.approx(RETRAINED_AUC)
    assert result.auc_reference.kind == "run"
    assert result.auc_reference.source == "retrained at none"
    assert result.auc_reference.weights_sha256 == stored.checkpoint.weights_sha256
    assert not [line for line in lines if "no PrivLeak" in line or "explodes" in line]


def test_a_later_reference_reuses_the_records(toy: Toy) -> None:
    model = script(toy)
    first = run(model, "toy_privleak", toy)
    asked, path = list(model.asked), run_dir(toy, model)
    before = (path / "samples" / "toy_privleak.jsonl").read_bytes()
    reference = retrained_run(toy)
    with logged() as lines:
        second = run(model, "toy_privleak", toy, reference=reference)
    assert model.asked == asked
    assert asked
    assert any("already in" in line and "not computed again" in line for line in lines)
    leak = second.tasks["toy_privleak"]
    assert leak.value == pytest.approx((AUC - RETRAINED_AUC) / RETRAINED_AUC * 100)
    assert leak.records_sha256 == first.tasks["toy_privleak"].records_sha256
    assert (path / "samples" / "toy_privleak.jsonl").read_bytes() == before
    assert read_run(path) == second
    fresh = run(script(toy), "toy_privleak", toy, reference=reference, output=toy.out / "fresh")
    assert leak == fresh.tasks["toy_privleak"]  # at once or in two steps: the same


def test_a_rerun_without_a_reference_keeps_the_value(toy: Toy) -> None:
    model, reference = script(toy), retrained_run(toy)
    first = run(model, "toy_privleak", toy, reference=reference)
    assert run(model, "toy_privleak", toy) == first
    assert read_run(run_dir(toy, model)) == first


def test_another_reference_replaces_the_value(toy: Toy) -> None:
    model, reference = script(toy), retrained_run(toy)
    run(model, "toy_privleak", toy, reference=reference)
    other = script(toy, (1.0, 2.0, 3.0), (0.0, 4.0, 4.0), name="retrained again")
    run(other, "toy_privleak", toy)
    leak = run(model, "toy_privleak", toy, reference=run_dir(toy, other)).tasks["toy_privleak"]
    assert leak.value == pytest.approx((AUC - 3 / 9) / (3 / 9) * 100)


def test_a_rerun_asks_only_for_what_is_missing(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy)
    model.asked = []
    result = run(model, "toy_knowmem_f,toy_verbmem", toy)
    assert {name.split(":")[0] for name in model.asked} == {"toy_knowmem_f"}
    assert list(result.tasks) == ["toy_knowmem_f", "toy_verbmem"]
    assert read_run(run_dir(toy, model)) == result


def test_a_rerun_finds_records_that_were_changed(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy)
    path = run_dir(toy, model) / "samples" / "toy_verbmem.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"score": 1.0', b'"score": 0.0'))
    with pytest.raises(ResultError, match=re.escape(str(path))):
        run(model, "toy_verbmem", toy)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"seed": 7}, "seed is 0 there and 7 here"),
        ({"limit": 2}, "limit is absent there and 2 here"),
        ({"ppl_lower": True}, "ppl_lower is False there and True here"),
        ({"protocol": "zhang2025"}, "protocol is muse there and zhang2025 here"),
    ],
)
def test_other_settings_need_another_folder(
    toy: Toy, options: Mapping[str, object], said: str
) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy)
    asked = list(model.asked)
    with pytest.raises(ResultError, match=said):
        run(model, "toy_verbmem,toy_privleak", toy, **options)
    assert model.asked == asked


def test_another_version_or_other_data_are_not_taken_over(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy)
    edit_task(toy, "toy_verbmem", "version: 1.0", "version: 2.0")
    with pytest.raises(ResultError, match=r"toy_verbmem: task version is 1\.0 there and 2\.0 here"):
        run(model, "toy_verbmem", toy)
    edit_task(toy, "toy_verbmem", "version: 2.0", "version: 1.0")
    edit_task(toy, "toy_verbmem", "max_gen_toks: 16}\nprotocol", "max_gen_toks: 17}\nprotocol")
    with pytest.raises(ResultError, match="task definition is .* there and .* here"):
        run(model, "toy_verbmem", toy)
    edit_task(toy, "toy_verbmem", "max_gen_toks: 17}", "max_gen_toks: 16}")
    assert run(model, "toy_verbmem", toy).tasks["toy_verbmem"].n == 3
    write_rows(toy, "verbmem/forget.jsonl", rows(toy, "verbmem/forget.jsonl")[::-1])
    with pytest.raises(ResultError, match="data of split 'forget' is"):
        run(model, "toy_verbmem", toy)


# Of 20 members half are at level 1 and half at 3: a holdout text at 0 lies below 20 of them, one at
# 2 below 10, one at 9 below none.
@pytest.mark.parametrize(
    ("others", "auc"),
    [([2.0] + [9.0] * 19, 10 / 400), ([0.0, 2.0] + [9.0] * 18, 30 / 400), ([0.0] * 20, 1.0)],
)
def test_a_reference_below_0_05_is_said_to_explode(
    toy: Toy, others: list[float], auc: float
) -> None:
    edit_task(toy, "toy_privleak", "{rows: 3}", "{rows: 20}")
    for split in ("forget", "holdout"):
        texts = [{"text": f"{split} text number {n}"} for n in range(20)]
        write_rows(toy, f"privleak/{split}.jsonl", texts)
    retrained = script(toy, [1.0, 3.0] * 10, others, name="retrained")
    run(retrained, "toy_privleak", toy)
    model = script(toy, [1.0] * 20, [2.0] * 19 + [0.5])
    with logged() as lines:
        result = run(model, "toy_privleak", toy, reference=run_dir(toy, retrained))
    leak = result.tasks["toy_privleak"]
    assert leak.value == pytest.approx((20 / 400 - auc) / auc * 100)
    explodes = [line for line in lines if "explodes" in line]
    if auc < 0.05:
        assert len(explodes) == 1
        assert "WARNING: toy_privleak: the reference AUC is 0.025" in explodes[0]
    else:
        assert not explodes


def test_a_reference_auc_of_0_raises(toy: Toy) -> None:
    told_apart = script(toy, (1.0, 1.1, 1.2), (3.0, 3.1, 3.2), name="retrained")
    run(told_apart, "toy_privleak", toy)
    model = script(toy)
    with pytest.raises(MetricError, match="its AUC is 0, so PrivLeak is not defined"):
        run(model, "toy_privleak", toy, reference=run_dir(toy, told_apart))
    assert model.asked == []


def test_ppl_lower_is_a_second_pass_made_only_when_asked_for(toy: Toy) -> None:
    model = script(toy)
    result = run(model, "toy_privleak,toy_verbmem", toy, ppl_lower=True)
    leak = [name for name in model.asked if name.startswith("toy_privleak")]
    assert len(leak) == 12
    assert len([name for name in leak if name.endswith(":lower")]) == 6
    assert len(model.asked) == 12 + 3
    for record, level in zip(records(toy, model, "toy_privleak"), [*MEMBERS, *OTHERS], strict=True):
        assert record.scores["PPL/lower"] == pytest.approx(level / 4.0)
    assert result.settings.ppl_lower is True
    attacks = result.tasks["toy_privleak"].attacks
    assert attacks is not None
    assert attacks["PPL/lower"].auc == pytest.approx(AUC)
    plain = script(toy)
    attacks = (
        run(plain, "toy_privleak", toy, output=toy.out / "plain").tasks["toy_privleak"].attacks
    )
    assert len(plain.asked) == 6
    assert attacks is not None
    assert "PPL/lower" not in attacks


def test_empty_outputs_are_counted_and_noted(toy: Toy) -> None:
    with logged() as lines:
        results = run(script(toy), "toy_verbmem,toy_knowmem_f", toy).tasks
    assert results["toy_verbmem"].empty_outputs == 1
    assert results["toy_knowmem_f"].empty_outputs == 0
    assert [line for line in lines if "outputs are empty" in line] == [
        "WARNING: toy_verbmem: 1 of 3 outputs are empty"
    ]


def test_blank_outputs_are_empty_too(toy: Toy) -> None:
    model = Spy(dict.fromkeys(verbmem_outputs(toy), " \n\t"))
    assert run(model, "toy_verbmem", toy).tasks["toy_verbmem"].empty_outputs == 3


def test_a_task_that_fails_leaves_the_others_finished(toy: Toy) -> None:
    model = script(toy)
    model.refuse = "toy_privleak"
    with pytest.raises(EvaluationError, match="failed: toy_privleak at none: refused") as raised:
        run(model, "toy_verbmem,toy_privleak,toy_knowmem_f", toy)
    saved = read_run(run_dir(toy, model))
    assert list(saved.tasks) == ["toy_knowmem_f", "toy_verbmem"]
    assert raised.value.results == (saved,)
    (failure,) = raised.value.failures
    assert (failure.task, failure.condition) == ("toy_privleak", "none")
    assert isinstance(failure.error, ModelOutputError)
    assert "test_evaluate.py" in failure.traceback
    assert failure.error.__traceback__ is None, "its frames would keep the model in memory"
    assert not (run_dir(toy, model) / "samples" / "toy_privleak.jsonl").exists()
    model.refuse, model.asked = "nothing", []
    result = run(model, "toy_verbmem,toy_privleak,toy_knowmem_f", toy)
    assert {name.split(":")[0] for name in model.asked} == {"toy_privleak"}
    assert len(result.tasks) == 3
    assert result.tasks["toy_verbmem"] == saved.tasks["toy_verbmem"]


def test_a_task_that_fails_first_leaves_no_result(toy: Toy) -> None:
    model = script(toy)
    model.refuse = "toy_verbmem"
    with pytest.raises(ModelOutputError, match="refused"):
        run(model, "toy_verbmem", toy)
    assert not (run_dir(toy, model) / "run.json").exists()


@pytest.mark.parametrize("limit", [1, 2, 3, 50])
def test_limit_takes_the_first_rows_of_each_split(toy: Toy, limit: int) -> None:
    model, n = script(toy), min(limit, 3)
    result = run(model, "toy", toy, limit=limit)
    assert {name: task.n for name, task in result.tasks.items()} == dict.fromkeys(
        ("toy_knowmem_f", "toy_privleak", "toy_verbmem"), n
    )
    assert len(model.asked) == 4 * n
    assert result.settings.limit == limit
    assert result.tasks["toy_verbmem"].data[0].rows == 3
    verbmem = [r.id for r in records(toy, model, "toy_verbmem")]
    assert verbmem == [f"forget/{i}" for i in range(n)]
    wins = sum(low > high for low in MEMBERS[:n] for high in OTHERS[:n])
    assert result.tasks["toy_privleak"].auc == pytest.approx(wins / n**2)
    assert (result.tasks["toy_verbmem"].ci is None) == (n == 1)
    assert (result.tasks["toy_privleak"].auc_ci is None) == (n == 1)


def test_the_run_file_holds_what_was_returned(toy: Toy) -> None:
    model = script(toy)
    result = run(model, "toy", toy, seed=5)
    assert read_run(run_dir(toy, model)) == result
    assert result.checkpoint == model.checkpoint
    assert result.condition == model.condition
    assert result.protocol == "muse"
    assert result.settings.model_dump(exclude_none=True) == {
        "protocol": "muse",
        "dtype": "fp32",
        "device": "cpu",
        "seed": 5,
        "ppl_lower": False,
    }
    assert result.environment.batch_size == "auto"


def test_the_same_run_gives_the_same_bytes(toy: Toy) -> None:
    contents = []
    for name in ("one", "two"):
        model = script(toy)
        (result,) = evaluate(model, "toy", **(toy.options | {"output": toy.out / name}))
        folder = toy.out / name / model_folder_name(model.checkpoint) / "none"
        samples = {p.name: p.read_bytes() for p in sorted((folder / "samples").iterdir())}
        contents.append((samples, result.tasks))
    assert contents[0] == contents[1]


def test_progress_off_prints_nothing(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    run(script(toy), "toy", toy)
    assert capfd.readouterr() == ("", "")


def test_progress_on_draws_a_line_for_each_task(
    toy: Toy, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    run(script(toy), "toy_verbmem,toy_privleak", toy, progress=True, ppl_lower=True)
    assert capfd.readouterr().out == ""
    assert "toy_verbmem [none]: 0 of 3 samples" in screen.getvalue()
    assert "toy_privleak [none]: 0 of 12 samples" in screen.getvalue()


@pytest.mark.parametrize("quant", ["nf4", "none,nf4", ["none", "8bit"]])
def test_a_model_object_takes_no_precision(toy: Toy, quant: str | list[str]) -> None:
    model = script(toy)
    with pytest.raises(OptionError, match="has its precision already"):
        evaluate(model, "toy", quant, **toy.options)
    assert model.asked == []
    assert not list(toy.out.rglob("run.json"))


def test_precisions_of_one_model_stand_side_by_side(toy: Toy) -> None:
    full, coarse = script(toy), script(toy, precision="coarse")
    run(full, "toy_verbmem", toy)
    run(coarse, "toy_verbmem", toy)
    assert run_dir(toy, full).parent == run_dir(toy, coarse).parent
    assert read_run(run_dir(toy, coarse)).condition.name == "coarse"
    assert read_run(run_dir(toy, full)).condition.name == "none"


def test_a_models_precision_never_leads_out_of_the_output_folder(toy: Toy) -> None:
    root = toy.out.parent
    before = {path.name for path in root.iterdir()}
    # Refused when the Precision is made, or by the evaluator, or made safe: any of these is fine.
    with suppress(UnlearnbenchError, ValidationError):
        run(script(toy, precision="../../escaped"), "toy_verbmem", toy)
    assert {path.name for path in root.iterdir()} - before <= {"out"}


def test_a_file_in_the_way_is_found_before_the_model_is_asked(toy: Toy) -> None:
    toy.out.write_text("in the way", encoding="utf-8")
    model = script(toy)
    with pytest.raises(ResultError, match="not writable"):
        run(model, "toy", toy)
    assert model.asked == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "--limit 0"),
        ({"limit": -1}, "--limit -1"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"batch_size": "big"}, "--batch-size big"),
        ({"protocol": "lm-eval"}, "--protocol lm-eval"),
        ({"dtype": "int8"}, "--dtype int8"),
    ],
)
def test_options_that_make_no_sense_raise(
    toy: Toy, options: Mapping[str, object], said: str
) -> None:
    model = script(toy)
    with pytest.raises(OptionError, match=said):
        run(model, "toy", toy, **options)
    assert model.asked == []


@pytest.mark.parametrize("tasks", ["", " , ", [], "toy_verbmen"])
def test_no_task_or_an_unknown_one_raises(toy: Toy, tasks: str | list[str]) -> None:
    with pytest.raises(TaskError):
        evaluate(script(toy), tasks, **toy.options)
    assert not list(toy.out.rglob("run.json"))


def test_a_superseded_task_says_so(toy: Toy) -> None:
    edit_task(toy, "toy_verbmem", "want: low", "want: low\nsuperseded_by: toy_verbmem_2")
    with logged() as lines:
        run(script(toy), "toy_verbmem", toy)
    assert "WARNING: toy_verbmem is superseded by toy_verbmem_2" in lines


def test_sampling_is_asked_for_under_zhang2025_only(toy: Toy) -> None:
    seen: list[Generate] = []

    class Watch(Spy):
        def generate(
            self, requests: Sequence[Generate], skip: Collection[str] = ()
        ) -> Iterator[Generated]:
            seen.extend(requests)
            return super().generate(requests, skip)

    run(script(toy, kind=Watch), "toy_verbmem", toy)
    assert [request.sampling for request in seen] == [None] * 3
    seen.clear()
    other = toy.out / "zhang"
    result = run(
        script(toy, kind=Watch), "toy_verbmem", toy, protocol="zhang2025", seed=9, output=other
    )
    for request in seen:
        assert request.sampling is not None
        assert (request.sampling.temperature, request.sampling.seed) == (0.9, 9)
    assert result.protocol == result.settings.protocol == "zhang2025"


def test_one_non_finite_text_stops_the_task(toy: Toy) -> None:
    # With NaN for one text an AUC over the rest would still come out.
    texts = levels(toy)
    texts[rows(toy, "privleak/forget.jsonl")[1]["text"]][3] = float("nan")
    with pytest.raises(MetricError, match="toy_privleak:forget/1"):
        run(ScriptedModel(logprobs=texts), "toy_privleak", toy)
    assert not list(toy.out.rglob("run.json"))


@pytest.mark.field(
    "Data, files, commands",
    "text too short for some membership attacks",
    "with a note: these are left out",
)
@pytest.mark.parametrize("n", [3, 14, 19])
def test_attacks_that_one_text_is_too_short_for_are_left_out(
    toy: Toy, n: int, caplog: pytest.LogCaptureFixture
) -> None:
    texts = levels(toy)
    whole = run(ScriptedModel(logprobs=texts), "toy_privleak", toy).tasks["toy_privleak"]
    short = rows(toy, "privleak/holdout.jsonl")[2]["text"]
    texts[short] = texts[short][:n]
    toy.out = toy.out / "short"
    part = run(ScriptedModel(logprobs=texts), "toy_privleak", toy).tasks["toy_privleak"]
    fitting = {k for k in (5, 10, 20, 30, 40, 50, 60) if int(k / 100 * n) >= 1}
    kept = {"PPL", "PPL/zlib"} | {f"Min-{k}%{end}" for k in fitting for end in ("", "++")}
    assert part.attacks is not None
    assert whole.attacks is not None
    assert set(part.attacks) == kept != set(whole.attacks)
    assert (part.auc, part.attacks["Min-40%"]) == (whole.auc, whole.attacks["Min-40%"])
    (file,) = toy.out.rglob("toy_privleak.jsonl")
    for line in file.read_text(encoding="utf-8").splitlines():
        assert set(json.loads(line)["scores"]) == kept
    said = "1 of 6 texts are too short for some attacks (holdout/2), so this run is without Min-10%"
    assert (said in caplog.text) is (n < 10)
    again = run(ScriptedModel(logprobs=texts), "toy_privleak", toy).tasks["toy_privleak"]
    assert again == part  # read from the folder


@pytest.mark.field(
    "Data, files, commands", "text too short for the task's attack", "refused, by row"
)
def test_a_text_too_short_for_the_tasks_attack_stops_the_task_by_name(toy: Toy) -> None:
    texts = levels(toy)
    short = rows(toy, "privleak/forget.jsonl")[1]["text"]
    texts[short] = texts[short][:2]
    with pytest.raises(MetricError, match="toy_privleak: forget/1: a text of 2 .* for Min-40%"):
        run(ScriptedModel(logprobs=texts), "toy_privleak", toy)


def with_package(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    """From here on runs find that version of a package."""
    monkeypatch.setattr(
        "unlearnbench.runs.fingerprint.package_version",
        lambda asked: version if asked == name else package_version(asked),
    )


def test_a_task_keeps_the_environment_that_it_was_measured_in(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = script(toy)
    first = run(model, "toy_verbmem", toy)
    assert first.tasks["toy_verbmem"].environment == first.environment
    before = run_dir(toy, model) / "samples" / "toy_verbmem.jsonl"
    bytes_before = before.read_bytes()

    with_package(monkeypatch, "numpy", "99")
    both = run(model, "toy_verbmem,toy_knowmem_f", toy)
    assert both.environment.packages["numpy"] == "99"
    assert both.tasks["toy_knowmem_f"].environment == both.environment
    assert both.tasks["toy_verbmem"] == first.tasks["toy_verbmem"]
    assert before.read_bytes() == bytes_before

    with_package(monkeypatch, "numpy", "100")
    assert run(model, "toy_verbmem,toy_knowmem_f", toy) == both == read_run(run_dir(toy, model))


def test_a_summary_names_the_packages_that_differ_between_tasks(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, options = script(toy), Options(output=toy.out, include_path=(toy.tasks,))
    with_package(monkeypatch, "numpy", "98")
    first = run(model, "toy_verbmem", toy)
    assert "numpy" not in evaluation_summary([first], "toy_verbmem", options)
    with_package(monkeypatch, "numpy", "99")
    both = run(model, "toy_knowmem_f", toy)
    *_, line = evaluation_summary([both], "toy_knowmem_f", options).splitlines()
    assert line == f"{run_dir(toy, model)}: numpy 99 for toy_knowmem_f, 98 for toy_verbmem"


def test_what_an_older_file_says_once_is_kept_with_its_tasks(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = script(toy)
    first = run(model, "toy_verbmem,toy_privleak", toy)
    path = run_dir(toy, model) / "run.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for task in content["tasks"].values():
        del task["environment"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with_package(monkeypatch, "numpy", "99")
    run(model, "toy_verbmem", toy)
    assert json.loads(path.read_text(encoding="utf-8")) == content, "nothing was measured"
    more = run(model, "toy_verbmem,toy_knowmem_f", toy)
    made = {name: task.environment for name, task in more.tasks.items()}
    assert made == {
        "toy_knowmem_f": more.environment,
        "toy_privleak": first.environment,
        "toy_verbmem": first.environment,
    }
    assert more.environment != first.environment


def test_a_run_that_any_other_version_of_ours_began_says_so(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = script(toy)
    with monkeypatch.context() as patch:
        patch.setattr("unlearnbench.runs.fingerprint.source_sha256", lambda: "f" * 64)
        run(model, "toy_verbmem", toy)
    for task in ("toy_knowmem_f", "toy_privleak"):
        with logged() as said:
            run(model, task, toy)
        assert any("was begun with another version of unlearnbench" in line for line in said)
