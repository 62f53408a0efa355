"""Which texts a calibrated precision sees, and what is recorded of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conditions.helpers import in_force, load, own, require_library
from tests.conftest import CORPUS, Toy, load_at, write_jsonl
from unlearnbench import evaluate
from unlearnbench.checkpoints.checkpoint import CheckpointSource
from unlearnbench.conditions.quantize.calibration import (
    CALIBRATION_TOKENS,
    GENERIC,
    pick_calibration,
    token_batches,
)
from unlearnbench.errors import DataError, OptionError, PrecisionError, ResultError
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, TaskSamples, load_samples
from unlearnbench.util.files import content_sha256

PASSAGES = [json.loads(line)["text"] for line in GENERIC.read_text("utf-8").splitlines()]


def plans(toy: Toy, names: str = "toy") -> list[TaskSamples]:
    specs = load_registry([toy.tasks]).resolve(names.split(","))
    return [load_samples(spec, DataOptions(toy.data), None) for spec in specs]


def test_the_generic_set_is_96_distinct_passages() -> None:
    assert len(PASSAGES) == 96
    assert len({text.strip() for text in PASSAGES}) == 96
    assert len({text[:40] for text in PASSAGES}) == 96
    assert all(len(text.split()) >= 30 for text in PASSAGES)


def test_all_of_the_generic_set_is_used_by_default() -> None:
    found = pick_calibration("generic", [], 96, 0)
    assert sorted(found.texts) == sorted(PASSAGES)
    assert found.data.model_dump() == {
        "name": "generic",
        "samples": 96,
        "max_tokens": CALIBRATION_TOKENS,
        "seed": 0,
        "sha256": content_sha256(list(found.texts)),
    }


def test_the_seed_chooses_texts_and_order() -> None:
    first, again, other = (pick_calibration("generic", [], 8, seed) for seed in (0, 0, 1))
    assert first == again
    assert set(first.texts) <= set(PASSAGES)
    assert len(set(first.texts)) == 8
    assert set(other.texts) != set(first.texts)
    assert other.data.sha256 != first.data.sha256
    assert (first.data.seed, other.data.seed) == (0, 1)
    whole = [pick_calibration("generic", [], 96, seed).data.sha256 for seed in (0, 1)]
    assert whole[0] != whole[1]  # the order is part of it


def test_forget_and_retain_are_the_tasks_own_rows(toy: Toy) -> None:
    found = pick_calibration("forget", plans(toy), 96, 0)
    texts = [CORPUS[n].strip() * 2 for n in range(6)]
    # The articles, members only, and questions with their answers; not the shots.
    questions = [f"Question: Which gate is {n}?\nAnswer: gate {n}" for n in range(3)]
    wanted = {*texts[:3], *questions}
    got = {" ".join(text.split()) for text in found.texts}
    assert {" ".join(text.split()) for text in wanted} <= got
    assert not any("gate is 3?" in text or "gate is 4?" in text for text in found.texts)
    assert not set(texts[3:]) & set(found.texts)
    assert found.data.name == "forget"
    assert found.data.samples == len(found.texts) == len(set(found.texts))


def test_retain_rows_come_from_tasks_that_want_much(toy: Toy) -> None:
    path = toy.tasks / "toy_knowmem_f.yaml"
    text = path.read_text("utf-8").replace("toy_knowmem_f", "toy_knowmem_r")
    retain = toy.tasks / "toy_knowmem_r.yaml"
    retain.write_text(text.replace("want: low", "want: high"), "utf-8")
    found = pick_calibration("retain", plans(toy, "toy_knowmem_r,toy_verbmem"), 96, 0)
    assert len(found.texts) == 3
    assert all(text.startswith("Question: Which gate is") for text in found.texts)
    with pytest.raises(OptionError, match="--calibration forget: none of the tasks has forget"):
        pick_calibration("forget", plans(toy, "toy_knowmem_r"), 96, 0)


@pytest.mark.parametrize("kind", ["forget", "retain"])
def test_no_task_with_such_rows_is_an_error(kind: str) -> None:
    with pytest.raises(OptionError, match=f"{kind}: none of the tasks has {kind} rows; add one"):
        pick_calibration(kind, [], 8, 0)


def test_a_file_of_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "own.jsonl"
    write_jsonl(path, [{"text": "one\u2028two"}, {"text": "three", "id": 3}, {"text": " "}])
    with caplog.at_level("INFO"):
        found = pick_calibration(str(path), [], 8, 0)
    assert set(found.texts) == {"one\u2028two", "three"}
    assert (found.data.name, found.data.samples) == ("own.jsonl", 2)
    assert "has 3 texts" not in caplog.text
    assert "has 2 texts; all are used" in caplog.text


def test_a_file_of_passages(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("one\nstill one\n\n\n\ntwo\n\ntwo\n", "utf-8")
    assert set(pick_calibration(str(path), [], 8, 0).texts) == {"one\nstill one", "two"}


@pytest.mark.parametrize(
    ("name", "content", "kind", "said"),
    [
        ("a.jsonl", b"", DataError, "holds no texts"),
        ("a.txt", b"\n\n \n", DataError, "holds no texts"),
        ("a.jsonl", b'{"text": " "}\n', DataError, "holds no texts"),
        ("a.jsonl", b'{"text": "x"}\n{\n', DataError, "line 2: no JSON object with a field 'text'"),
        ("a.jsonl", b'{"text": 3}\n', DataError, "line 1: no JSON object"),
        ("a.jsonl", b'["x"]\n', DataError, "line 1: no JSON object"),
        ("a.jsonl", b'{"other": "x"}\n', DataError, "line 1: no JSON object"),
        ("a.jsonl", b"[" * 100_000, DataError, "line 1: no JSON object"),
        ("a.jsonl", b'{"text": "\xff"}\n', OptionError, "no readable file"),
        ("a.csv", b"text\nx\n", OptionError, "use a .jsonl or a .txt file"),
        ("a", b"x", OptionError, "use a .jsonl or a .txt file"),
    ],
)
def test_a_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, name: str, content: bytes, kind: type[Exception], said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=said) as raised:
        pick_calibration(str(tmp_path / name), [], 8, 0)
    assert str(tmp_path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["genric", "", "no/such/file.jsonl", ".", "x\x00y", "x" * 5000])
def test_no_such_set_or_file_is_an_error(name: str) -> None:
    with pytest.raises(OptionError, match="is no generic, forget or retain, and no readable file"):
        pick_calibration(name, [], 8, 0)


def test_a_huge_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "own.txt"
    path.write_text("x" * 100, "utf-8")
    monkeypatch.setattr("unlearnbench.conditions.quantize.calibration._MAX_FILE", 99)
    with pytest.raises(OptionError, match="is larger than"):
        pick_calibration(str(path), [], 8, 0)


@pytest.mark.parametrize("samples", [0, -1])
def test_no_sample_is_an_error(samples: int) -> None:
    with pytest.raises(OptionError, match=f"--calibration-samples {samples}: use 1 or more"):
        pick_calibration("generic", [], samples, 0)


def test_options_are_checked_before_anything_is_loaded(
    tiny: Path, toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    require_library("gptq-int4-g64")

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("the checkpoint was opened")

    monkeypatch.setattr("unlearnbench.conditions.load.open_source", never)
    with pytest.raises(OptionError, match="--calibration-samples 0"):
        evaluate(str(tiny), "toy", "gptq-int4-g64", calibration_samples=0, **toy.options)
    with pytest.raises(OptionError, match="no readable file"):
        evaluate(str(tiny), "toy", "gptq-int4-g64", calibration="odd", **toy.options)


def test_a_set_that_moves_nothing_is_said(
    tiny: Path, toy: Toy, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = toy.options
    (result,) = evaluate(str(tiny), "toy_verbmem", "rtn-int4", calibration="forget", **options)
    assert "--calibration moves nothing: none of these conditions looks at texts" in caplog.text
    assert result.condition.options.calibration is None


def test_a_calibrated_precision_without_texts_is_an_error(source: CheckpointSource) -> None:
    require_library("gptq-int4-g64")
    with pytest.raises(PrecisionError, match="needs calibration texts; give --calibration"):
        load_at(source, "gptq-int4-g64")


def test_texts_are_cut_to_the_recorded_length(source: CheckpointSource) -> None:
    found = pick_calibration("generic", [], 4, 0)
    data = found.data.model_copy(update={"max_tokens": 11})
    short = type(found)(found.texts, data)
    for batch, text in zip(token_batches(source, short), short.texts, strict=True):
        assert batch["input_ids"].tolist() == [list(source.tokenizer(text)["input_ids"])[:11]]
        assert batch["attention_mask"].tolist() == [[1] * 11]


def test_a_text_without_two_tokens_is_an_error(source: CheckpointSource) -> None:
    found = pick_calibration("generic", [], 1, 0)
    with pytest.raises(PrecisionError, match="a calibration text has 1 tokens: ''; remove it"):
        token_batches(source, type(found)(("",), found.data))


def test_the_same_texts_give_the_same_weights_and_others_do_not(source: CheckpointSource) -> None:
    require_library("gptq-int4-g64")
    first, again = (in_force(source, "gptq-int4-g64") for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = load_at(
        source,
        "gptq-int4-g64",
        kernel="dequantized",
        calibration=pick_calibration("generic", [], 2, 1),
    )
    weight: Any = other.network.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert not np.array_equal(weight.numpy(), first)
    assert (
        other.condition.options.calibration
        != load(source, "gptq-int4-g64").condition.options.calibration
    )
    assert not np.array_equal(first, own(source))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"calibration": "forget"}, "calibration name is short.jsonl there and forget here"),
        ({"calibration_samples": 3}, "calibration samples is 4 there and 3 here"),
    ],
)
def test_another_calibration_in_a_run_folder_is_refused_by_name(
    source: CheckpointSource, toy: Toy, changes: dict[str, Any], said: str
) -> None:
    require_library("gptq-int4-g64")
    write_jsonl(toy.data / "short.jsonl", [{"text": text.strip() * 2} for text in CORPUS[20:24]])
    asked: dict[str, Any] = {"calibration": str(toy.data / "short.jsonl"), "calibration_samples": 4}
    path = source.files.path
    evaluate(path, "toy_verbmem", "gptq-int4-g64", **toy.options, **asked)
    with pytest.raises(ResultError, match=said):
        evaluate(path, "toy_verbmem", "gptq-int4-g64", **toy.options, **(asked | changes))
