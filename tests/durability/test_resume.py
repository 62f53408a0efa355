"""What an interrupted task must have in common with the command that goes on with it; --fresh; and
failures among several tasks and precisions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy
from tests.durability.test_faults import Counting, kept_answers, records
from tests.evaluation.test_evaluate import Spy, edit_task, rows, run, run_dir, script, write_rows
from unlearnbench import ScriptedModel, evaluate
from unlearnbench.cli import main
from unlearnbench.errors import EvaluationError, ModelOutputError, ResultError
from unlearnbench.runs.entries import load_entries
from unlearnbench.runs.fingerprint import package_version
from unlearnbench.runs.folder import read_run


class Stopping(Spy):
    """Answers ``most`` requests and is then interrupted."""

    most = 2

    def generate(self, requests: Any, skip: Any = ()) -> Any:
        for n, answer in enumerate(super().generate(requests, skip)):
            if n == self.most:
                raise KeyboardInterrupt
            yield answer


def stop_half_way(toy: Toy, **options: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(script(toy, kind=Stopping), "toy_verbmem", toy, **options)
    assert len(kept_answers(toy.out)) == 2


def other_version(toy: Toy) -> dict[str, Any]:
    edit_task(toy, "toy_verbmem", "version: 1.0", "version: 2.0")
    return {}


def other_definition(toy: Toy) -> dict[str, Any]:
    edit_task(toy, "toy_verbmem", "max_gen_toks: 16}\nprotocol", "max_gen_toks: 17}\nprotocol")
    return {}


def other_data(toy: Toy) -> dict[str, Any]:
    write_rows(toy, "verbmem/forget.jsonl", rows(toy, "verbmem/forget.jsonl")[::-1])
    return {}


CHANGES: list[tuple[Callable[[Toy], dict[str, Any]], str]] = [
    (lambda toy: {"seed": 7}, "seed is 0 there and 7 here"),
    (lambda toy: {"limit": 3}, "limit is absent there and 3 here"),
    (lambda toy: {"ppl_lower": True}, "ppl_lower is False there and True here"),
    (lambda toy: {"protocol": "zhang2025"}, "protocol is muse there and zhang2025 here"),
    (lambda toy: {"batch_size": 4}, "batch size is auto there and 4 here"),
    (other_version, "task version is 1.0 there and 2.0 here"),
    (other_definition, "task definition is [0-9a-f]{12} there and [0-9a-f]{12} here"),
    (other_data, "data of split 'forget' is [0-9a-f]{12} there and [0-9a-f]{12} here"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_half_a_task_of_another_configuration_is_refused(
    toy: Toy, change: Callable[[Toy], dict[str, Any]], said: str
) -> None:
    stop_half_way(toy)
    model = script(toy)  # of the rows as they were: its script is its weights
    options = change(toy)
    with pytest.raises(ResultError, match=f"holds half a task of .*{said}") as raised:
        run(model, "toy_verbmem", toy, **options)
    several = change in (other_version, other_data)  # the definition's hash changes with those
    assert several or str(raised.value).count(" there and ") == 1
    assert model.asked == []
    assert len(kept_answers(toy.out)) == 2, "a refused run changes nothing"
    run(model, "toy_verbmem", toy, **options, fresh=True)


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("torch.get_num_threads", lambda: 77, "threads is .* there and 77 here"),
        (
            "unlearnbench.runs.fingerprint.source_sha256",
            lambda: "f" * 64,
            "unlearnbench's source is [0-9a-f]{12} there and ffffffffffff here",
        ),
        (
            "platform.machine",
            lambda: "abacus",
            r"device name is .* there and cpu \(abacus\) here",
        ),
        (
            "unlearnbench.runs.fingerprint.package_version",
            lambda name: "99" if name == "torch" else package_version(name),
            r"package torch is .* there and 99 here",
        ),
    ],
)
def test_half_a_task_of_another_machine_is_refused(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, where: str, value: object, said: str
) -> None:
    stop_half_way(toy)
    monkeypatch.setattr(where, value)
    with pytest.raises(ResultError, match=said):
        run(script(toy), "toy_verbmem", toy)


def test_other_weights_have_a_folder_of_their_own_and_other_configs_are_refused(toy: Toy) -> None:
    stop_half_way(toy)
    model = script(toy)
    model.checkpoint = model.checkpoint.model_copy(update={"config_sha256": "f" * 64})
    with pytest.raises(ResultError, match="config is none there and ffffffffffff here"):
        run(model, "toy_verbmem", toy)


def test_another_task_does_not_touch_the_half_one(toy: Toy) -> None:
    stop_half_way(toy)
    run(script(toy), "toy_knowmem_f", toy)
    second = script(toy, kind=Counting)
    run(second, "toy_verbmem", toy)
    assert second.asked == ["toy_verbmem:forget/2"]


def test_an_edited_journal_is_exit_2(toy: Toy) -> None:
    stop_half_way(toy)
    (path,) = toy.out.rglob("partial/*.jsonl")
    content = path.read_text()
    path.write_text(content.replace('"text": ""', '"text": "all forgotten"'))
    model = script(toy)
    with pytest.raises(ResultError, match=r"toy_verbmem\.jsonl:3: damaged or changed: its check"):
        run(model, "toy_verbmem", toy)
    assert model.asked == []


# --fresh


def test_fresh_sets_the_old_run_aside_and_measures_anew(toy: Toy) -> None:
    model = script(toy)
    old = run(model, "toy_verbmem", toy, seed=5)
    before = records(toy.out)
    folder = run_dir(toy, model)
    for n in (1, 2):
        model.asked = []
        new = run(model, "toy_verbmem,toy_knowmem_f", toy, fresh=True, seed=n)
        assert len(model.asked) == 6
        assert new.settings.seed == n
        assert read_run(folder) == new
        assert sorted(p.name for p in (folder.parent / ".old").iterdir()) == [
            f"none-{k}" for k in range(1, n + 1)
        ]
    assert read_run(folder.parent / ".old" / "none-1") == old
    kept = folder.parent / ".old" / "none-1" / "samples" / "toy_verbmem.jsonl"
    assert kept.read_bytes() == before["toy_verbmem.jsonl"]


def test_fresh_without_an_old_run_sets_nothing_aside(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy, fresh=True)
    assert not (run_dir(toy, model).parent / ".old").exists()


def test_fresh_gets_round_a_damaged_run_and_keeps_it(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy)
    folder = run_dir(toy, model)
    (folder / "run.json").write_text("damaged")
    run(model, "toy_verbmem", toy, fresh=True)
    assert (folder.parent / ".old" / "none-1" / "run.json").read_text() == "damaged"


def test_fresh_keeps_the_old_run_in_place_until_a_model_is_loaded(
    toy: Toy, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(tiny, "toy_verbmem", **toy.options)

    def fail(*_: object) -> None:
        raise ModelOutputError("it broke")

    with monkeypatch.context() as patch:
        patch.setattr("unlearnbench.conditions.load.Prepared.load", fail)
        with pytest.raises(ModelOutputError):
            evaluate(tiny, "toy_verbmem", **toy.options, fresh=True)
    assert not list(toy.out.rglob(".old"))
    assert len(list(toy.out.glob("*/none/run.json"))) == 1


def test_what_was_set_aside_is_no_run_to_compare(toy: Toy) -> None:
    model = script(toy)
    run(model, "toy_verbmem", toy)
    run(model, "toy_verbmem", toy, fresh=True)
    folder = run_dir(toy, model)
    for given in ([toy.out], [folder.parent], list(folder.parent.glob("[!.]*")), [folder]):
        (entry,) = load_entries(given)
        assert [loaded.path for loaded in entry.runs.values()] == [folder]
    aside = folder.parent / ".old" / "none-1"
    (entry,) = load_entries([aside])  # given itself, it is one
    assert [loaded.path for loaded in entry.runs.values()] == [aside]


def test_fresh_of_the_command_line(toy: Toy, tiny: Path, capsys: Any) -> None:
    arguments = ["--model", str(tiny), "--tasks", "toy_verbmem", *toy.arguments]
    for extra in ([], ["--seed", "3", "--fresh"]):
        with pytest.raises(SystemExit) as end:
            main([*arguments, *extra])
        assert end.value.code == 0
    assert "the earlier run is now in " in capsys.readouterr().err
    (run_json,) = toy.out.glob("*/none/run.json")
    assert json.loads(run_json.read_text())["settings"]["seed"] == 3


# Failures among several


def spoil(monkeypatch: pytest.MonkeyPatch, task: str, precision: str) -> None:
    """Have the model's logits be NaN where it answers ``task`` at ``precision``."""
    import torch

    from unlearnbench.models.hf import HFModel

    for name in ("generate", "score"):
        original = getattr(HFModel, name)

        def answers(self: HFModel, requests: Any, *given: Any, original: Any = original) -> Any:
            weight: Any = self.network.get_output_embeddings().weight
            before = weight.detach().clone()
            with torch.no_grad():
                if requests[0].id.startswith(task) and self.condition.name == precision:
                    weight[0, 0] = float("nan")
            try:
                yield from original(self, requests, *given)
            finally:
                with torch.no_grad():
                    weight.copy_(before)

        monkeypatch.setattr(HFModel, name, answers)


@pytest.mark.parametrize("task", ["toy_privleak", "toy_knowmem_f"])
def test_nan_logits_of_one_task_at_one_precision_are_an_error_and_never_a_score(
    toy: Toy,
    tiny: Path,
    task: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(monkeypatch, task, "fp32")
    arguments = ["--model", str(tiny), "--tasks", "toy", "--quant", "none,fp32", *toy.arguments]
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("unlearnbench: error")]
    assert f"failed: {task} at fp32: {task}:" in line, "the sample"
    assert "at fp32: the model's logits are NaN or infinite; no score can be given" in line
    assert f"failed: {task} at fp32: " in out
    assert out.count("FAILED") == 1
    tasks = {p.parent.name: set(read_run(p.parent).tasks) for p in toy.out.rglob("run.json")}
    every = {"toy_privleak", "toy_knowmem_f", "toy_verbmem"}
    assert tasks == {"none": every, "fp32": every - {task}}
    assert not list(toy.out.glob(f"*/fp32/samples/{task}.jsonl"))


def test_several_failures_are_all_named_and_the_first_run_is_returned(toy: Toy) -> None:
    model = script(toy)
    model.refuse = "toy_"
    with pytest.raises(EvaluationError) as raised:
        evaluate(model, "toy", **toy.options)
    assert [f.task for f in raised.value.failures] == [
        "toy_knowmem_f",
        "toy_privleak",
        "toy_verbmem",
    ]
    assert raised.value.results == ()
    for name in ("toy_knowmem_f", "toy_privleak", "toy_verbmem"):
        assert f"{name} at none: refused toy_" in str(raised.value)
    assert not list(toy.out.rglob("run.json"))


def test_an_output_that_fills_up_stops_everything_at_once(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = script(toy, kind=Counting)

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.write", full)
    with pytest.raises(ResultError, match=r"toy_knowmem_f\.jsonl cannot be written \(No space"):
        evaluate(model, "toy", **toy.options)
    assert len(model.asked) == 1


def test_a_model_without_answers_left_to_give_is_not_asked(toy: Toy) -> None:
    """The process died between the last answer and the records."""
    model = script(toy, kind=Counting)

    def die(records: object) -> bytes:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("unlearnbench.evaluation.run.encode_records", die)
        with pytest.raises(KeyboardInterrupt):
            run(model, "toy_privleak", toy, ppl_lower=True)
    empty = ScriptedModel(name="unlearned")
    empty.checkpoint = model.checkpoint
    assert run(empty, "toy_privleak", toy, ppl_lower=True).tasks["toy_privleak"].n == 3
