from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy, write_jsonl
from unlearnbench.errors import DataError, MetricError, TaskError
from unlearnbench.results import SplitData
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import DataOptions, TaskSamples, load_samples, rows_sha256
from unlearnbench.tasks.spec import TaskSpec


def spec_of(toy: Toy, name: str) -> TaskSpec:
    return load_registry([toy.tasks]).tasks[name]


def plan_of(toy: Toy, name: str, limit: int | None = None, drift: bool = False) -> TaskSamples:
    return load_samples(spec_of(toy, name), DataOptions(toy.data, allow_drift=drift), limit)


def changed(spec: TaskSpec, **changes: Any) -> TaskSpec:
    """The task with some fields replaced, checked as a file would be."""
    return type(spec).model_validate({**spec.model_dump(), **changes})


def ids(plan: TaskSamples) -> list[str]:
    return [sample.id for sample in plan.samples]


def rows_file(toy: Toy, name: str) -> Path:
    """As ``verbmem/forget``."""
    return toy.data / "toy" / "set" / f"{name}.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def set_row(toy: Toy, name: str, index: int, **fields: Any) -> None:
    path = rows_file(toy, name)
    rows = read_lines(path)
    rows[index] |= fields
    write_jsonl(path, rows)


# Samples.


def test_samples_of_a_generation_task(toy: Toy) -> None:
    plan = plan_of(toy, "toy_verbmem")
    rows = read_lines(rows_file(toy, "verbmem/forget"))
    found = [(s.id, s.split, s.text, s.target) for s in plan.samples]
    assert found == [
        (f"forget/{i}", "forget", row["prompt"], row["gt"]) for i, row in enumerate(rows)
    ]
    assert len(found) == 3


def test_samples_of_a_likelihood_task(toy: Toy) -> None:
    plan = plan_of(toy, "toy_privleak")
    expected = []
    for split in ("forget", "holdout"):
        rows = read_lines(rows_file(toy, f"privleak/{split}"))
        expected += [(f"{split}/{i}", split, row["text"], "") for i, row in enumerate(rows)]
    assert [(s.id, s.split, s.text, s.target) for s in plan.samples] == expected
    assert plan.ids("forget") == ("forget/0", "forget/1", "forget/2")
    assert plan.ids("holdout") == ("holdout/0", "holdout/1", "holdout/2")
    assert plan.ids("other") == ()


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, ["forget/0", "holdout/0"]),
        (2, ["forget/0", "forget/1", "holdout/0", "holdout/1"]),
        (3, [f"{split}/{i}" for split in ("forget", "holdout") for i in range(3)]),
        (9, [f"{split}/{i}" for split in ("forget", "holdout") for i in range(3)]),
        (None, [f"{split}/{i}" for split in ("forget", "holdout") for i in range(3)]),
    ],
)
def test_a_limit_takes_the_first_rows_of_each_split(
    toy: Toy, limit: int | None, expected: list[str]
) -> None:
    assert ids(plan_of(toy, "toy_privleak", limit)) == expected


def test_a_limit_does_not_change_a_sample_or_the_shots(toy: Toy) -> None:
    every = plan_of(toy, "toy_knowmem_f")
    limited = plan_of(toy, "toy_knowmem_f", 1)
    assert limited.samples == every.samples[:1]
    assert limited.samples[0].text.count("Question: ") == 3


def test_what_was_read_is_recorded_whole_whatever_the_limit(toy: Toy) -> None:
    plan = plan_of(toy, "toy_knowmem_f", 1)
    names = ("forget_qa", "forget_qa_icl")
    assert plan.data == tuple(
        SplitData(split=split, rows=len(rows), sha256=rows_sha256(rows), source="local")
        for split in names
        for rows in [read_lines(rows_file(toy, f"knowmem/{split}"))]
    )
    assert [part.rows for part in plan.data] == [3, 2]


def test_drift_is_recorded(toy: Toy) -> None:
    path = rows_file(toy, "verbmem/forget")
    write_jsonl(path, read_lines(path)[:2])
    with pytest.raises(DataError, match="2 rows instead of 3"):
        plan_of(toy, "toy_verbmem")
    plan = plan_of(toy, "toy_verbmem", drift=True)
    assert [part.drift for part in plan.data] == ["2 rows instead of 3"]
    assert ids(plan) == ["forget/0", "forget/1"]


# What would only come to light after hours of work.


@pytest.mark.parametrize(
    ("name", "rows", "field", "sample"),
    [
        ("toy_verbmem", "verbmem/forget", "prompt", "forget/1"),
        ("toy_privleak", "privleak/holdout", "text", "holdout/1"),
    ],
)
def test_an_empty_text(toy: Toy, name: str, rows: str, field: str, sample: str) -> None:
    set_row(toy, rows, 1, **{field: ""})
    with pytest.raises(DataError, match=f"^{name}: {sample} is empty; remove the row$"):
        plan_of(toy, name)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("", "no letter or digit"),
        (" ", "no letter or digit"),
        ("?!", "no letter or digit"),
        ("日本", "target '日本' loses 2 of its 2 letters and digits"),
        ("é", "target 'é' loses 1 of its 1"),
        ("в 1945 году", r"target 'в 1945 году' loses 5 of its 9 .*`metric: rougeL_unicode`"),
    ],
)
def test_a_target_that_cannot_be_scored_is_found_with_its_row(
    toy: Toy, target: str, words: str
) -> None:
    set_row(toy, "knowmem/forget_qa", 2, answer=target)
    with pytest.raises(MetricError, match=f"^toy_knowmem_f: forget_qa/2: .*{words}"):
        plan_of(toy, "toy_knowmem_f")


def test_targets_of_other_scripts_are_scored_by_unicode(toy: Toy) -> None:
    set_row(toy, "knowmem/forget_qa", 2, answer="в 1945 году")
    spec = changed(spec_of(toy, "toy_knowmem_f"), metric="rougeL_unicode")
    options = DataOptions(toy.data, allow_drift=True)
    assert load_samples(spec, options).samples[2].target == "в 1945 году"
    set_row(toy, "knowmem/forget_qa", 2, answer="…")
    with pytest.raises(MetricError, match="^toy_knowmem_f: forget_qa/2: .*no letter or digit"):
        load_samples(spec, options)


@pytest.mark.parametrize(
    ("name", "rows", "field"),
    [
        ("toy_verbmem", "verbmem/forget", "prompt"),
        ("toy_verbmem", "verbmem/forget", "gt"),
        ("toy_privleak", "privleak/forget", "text"),
    ],
)
def test_half_a_surrogate_pair(toy: Toy, name: str, rows: str, field: str) -> None:
    set_row(toy, rows, 1, **{field: "word \ud83d word"})
    with pytest.raises(
        DataError, match=f"^{name}: forget/1 holds half of a surrogate pair"
    ) as caught:
        plan_of(toy, name)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("name", "metric"),
    [
        ("toy_verbmem", "bleu"),
        ("toy_verbmem", "privleak"),
        ("toy_privleak", "bleu"),
        ("toy_privleak", "rougeL"),
    ],
)
def test_a_metric_of_no_or_the_other_kind(toy: Toy, name: str, metric: str) -> None:
    spec = changed(spec_of(toy, name), metric=metric)
    with pytest.raises(MetricError, match=f"no metric '{metric}'.*known: privleak, rougeL"):
        load_samples(spec, DataOptions(toy.data), None)


def test_a_row_without_the_field_is_named(toy: Toy) -> None:
    set_row(toy, "verbmem/forget", 2, gt=None)
    with pytest.raises(TaskError, match="^toy_verbmem: forget/2: .*'gt' is undefined"):
        plan_of(toy, "toy_verbmem")
    assert ids(plan_of(toy, "toy_verbmem", 2)) == ["forget/0", "forget/1"]


# The definition's hash.

SHA = "0a" * 32


@pytest.mark.parametrize(
    "changes",
    [{"description": "Other words."}, {"tag": ("a", "b")}, {"tag": ()}, {"superseded_by": "new"}],
)
def test_words_about_a_task_do_not_move_its_hash(toy: Toy, changes: dict[str, Any]) -> None:
    plan = plan_of(toy, "toy_knowmem_f")
    other = TaskSamples(changed(plan.spec, **changes), plan.splits, plan.samples)
    assert other.spec.definition_sha256 == plan.spec.definition_sha256
    assert len(plan.spec.definition_sha256) == 64


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("toy_knowmem_f", {"doc_to_text": "Question: {{question}}\nAnswer:"}),
        ("toy_knowmem_f", {"doc_to_target": "{{answer}}."}),
        ("toy_knowmem_f", {"target_delimiter": " "}),
        ("toy_knowmem_f", {"fewshot_delimiter": "\n"}),
        ("toy_knowmem_f", {"num_fewshot": 1}),
        ("toy_knowmem_f", {"num_fewshot": 0, "fewshot_split": None}),
        ("toy_knowmem_f", {"generation_kwargs": {"max_gen_toks": 8, "until": ["Question:"]}}),
        ("toy_knowmem_f", {"max_target_toks": 4}),
        ("toy_knowmem_f", {"protocol_overrides": {"zhang2025": {"max_gen_toks": 8}}}),
        ("toy_knowmem_f", {"metric": "rouge1"}),
        ("toy_knowmem_f", {"want": "high"}),
        ("toy_knowmem_f", {"task": "other"}),
        ("toy_knowmem_f", {"metadata": {"version": 2.0}}),
        ("toy_knowmem_f", {"dataset_path": "toy/other"}),
        ("toy_knowmem_f", {"dataset_kwargs": {"revision": "v2"}}),
        (
            "toy_knowmem_f",
            {"splits": {"forget_qa": {"rows": 3, "sha256": SHA}, "forget_qa_icl": {"rows": 2}}},
        ),
        ("toy_privleak", {"attack": "Min-20%"}),
        ("toy_privleak", {"member_split": "holdout", "nonmember_split": "forget"}),
        ("toy_privleak", {"doc_to_text": " {{text}}"}),
    ],
)
def test_whatever_can_move_a_score_moves_the_hash(
    toy: Toy, name: str, changes: dict[str, Any]
) -> None:
    plan = plan_of(toy, name)
    other = TaskSamples(changed(plan.spec, **changes), plan.splits, plan.samples)
    assert other.spec.definition_sha256 != plan.spec.definition_sha256


def test_an_unknown_attack_is_found_before_a_model_is_loaded(toy: Toy) -> None:
    path = toy.tasks / "toy_privleak.yaml"
    text = path.read_text(encoding="utf-8").replace("Min-40%", "Min-35%")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TaskError, match="toy_privleak: unknown attack 'Min-35%'.*Min-40%"):
        plan_of(toy, "toy_privleak")
