from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from tests.schemas import json_schemas, write_schemas
from unlearnbench.errors import ResultError
from unlearnbench.results import (
    RECORD_ADAPTER,
    AttackResult,
    AucReference,
    Checkpoint,
    Condition,
    ConditionOptions,
    Environment,
    GenerationRecord,
    LikelihoodRecord,
    Proof,
    RunResult,
    SampleRecord,
    Settings,
    SplitData,
    TaskResult,
)
from unlearnbench.runs.folder import RunFolder, read_run

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).resolve().parent / "golden" / "results"
SHA = "0123456789abcdef" * 4

ODD_TEXTS = [
    "\x00",
    "\u2028\u2029\x85",
    "😀 👩\u200d🚒",
    "\r\n",
    "\ufeff",
    "\x1b[2J",
    '"\\',
    "\ufffd",
]
text = st.one_of(st.text(st.characters(codec="utf-8"), max_size=20), st.sampled_from(ODD_TEXTS))
# Lone ones: JSON cannot tell a high one and a low one after it from the character they encode.
surrogates = st.text("a\ud800\udbff\udc80\udcff", min_size=1, max_size=8).filter(
    lambda found: not re.search("[\ud800-\udbff][\udc00-\udfff]", found)
)
finite = st.floats(allow_nan=False, allow_infinity=False)
share = st.floats(0, 1)
positive = st.floats(0, allow_infinity=False)
sha256 = st.text("0123456789abcdef", min_size=64, max_size=64)
interval = st.tuples(finite, finite)
relaxed = settings(deadline=None, max_examples=60)


def make_task(**changes: Any) -> TaskResult:
    """A task's result; ``value=None`` and the like leave a field out."""
    facts: dict[str, Any] = {
        "version": 1.0,
        "metric": "rougeL",
        "want": "low",
        "value": 50.0,
        "n": 3,
        "data": [{"split": "forget", "rows": 3, "sha256": SHA, "source": "local"}],
        "task_sha256": SHA,
        "records_sha256": SHA,
    }
    facts |= changes
    return TaskResult.model_validate({k: v for k, v in facts.items() if v is not None})


def make_result(tasks: dict[str, TaskResult] | None = None, condition: str = "none") -> RunResult:
    return RunResult(
        checkpoint=Checkpoint(
            path="models/unlearned",
            format="safetensors",
            weights_sha256=SHA,
            tokenizer_sha256=SHA,
            config_sha256=SHA,
        ),
        condition=Condition(
            name=condition,
            kind="stored" if condition == "none" else "quantized",
            options=ConditionOptions(bits=16, scheme="float", backend="plain"),
        ),
        protocol="muse",
        settings=Settings(protocol="muse", dtype="bf16", device="cpu", seed=0, ppl_lower=False),
        tasks={"toy_verbmem": make_task()} if tasks is None else tasks,
        environment=Environment(
            unlearnbench="0.1.0",
            source_sha256=SHA,
            python="3.11.7",
            platform="Linux",
            packages={"numpy": "2.4.6"},
            device="cpu",
            dtype="bf16",
            threads=2,
            batch_size="auto",
        ),
        created="2025-01-31T00:00:00Z",
    )


def generation_records(texts: st.SearchStrategy[str]) -> st.SearchStrategy[GenerationRecord]:
    return st.builds(
        GenerationRecord,
        task=texts,
        id=texts,
        prompt=texts,
        output=texts,
        target=texts,
        n_tokens=st.integers(0, 2**40),
        score=share,
        scores=st.dictionaries(texts, share, max_size=3),
    )


likelihood_records = st.builds(
    LikelihoodRecord,
    task=text,
    id=text,
    split=text,
    n_tokens=st.integers(1, 2**40),
    scores=st.dictionaries(text, finite, min_size=1, max_size=4),
)
a_record: st.SearchStrategy[SampleRecord] = st.one_of(generation_records(text), likelihood_records)

checkpoints = st.builds(
    Checkpoint,
    path=text,
    revision=st.none() | text,
    format=st.sampled_from(["safetensors", "pickle", "gguf", "adapter", "scripted"]),
    weights_sha256=sha256,
    tokenizer_sha256=sha256,
    config_sha256=st.none() | sha256,
    origin=st.dictionaries(text, text, max_size=2),
    adapter=st.sampled_from([None, "merged", "kept"]),
    base=st.none(),
)
proofs = st.builds(
    Proof,
    module_types=st.dictionaries(text, st.integers(), max_size=2),
    weights_by_dtype=st.dictionaries(text, st.integers(), max_size=2),
    covered_weights=st.integers(0, 2**40),
    total_weights=st.integers(1, 2**40),
    weight_bytes=st.integers(1, 2**40),
    relative_error=positive,
    compared_modules=st.integers(0, 1000),
    on_grid=st.booleans(),
    codes=st.none() | st.integers(),
)
conditions = st.builds(
    Condition,
    name=st.sampled_from(["none", "bnb-fp4", "rtn-int4-g128"]),
    kind=st.sampled_from(["stored", "quantized", "pruned"]),
    options=st.builds(
        lambda named, further: ConditionOptions.model_validate(further | named),
        st.fixed_dictionaries({"bits": st.floats(1, 64), "scheme": text, "backend": text}),
        st.dictionaries(text, st.booleans() | st.integers() | finite | text, max_size=3),
    ),
    proof=st.none() | proofs,
)
task_results = st.builds(
    TaskResult,
    version=finite,
    metric=text,
    want=st.sampled_from(["low", "high", "zero"]),
    value=finite,
    stderr=st.none() | positive,
    ci=st.none() | interval,
    n=st.integers(1, 1000),
    data=st.lists(
        st.builds(
            SplitData,
            split=text,
            rows=st.integers(1, 1000),
            sha256=sha256,
            source=st.sampled_from(["local", "package", "hub"]),
            drift=st.none() | text,
        ),
        max_size=2,
    ).map(tuple),
    task_sha256=sha256,
    records_sha256=sha256,
    scores=st.dictionaries(text, finite, max_size=2),
    empty_outputs=st.none() | st.integers(0, 1000),
    auc=st.none() | share,
    auc_stderr=st.none() | positive,
    auc_ci=st.none() | interval,
    auc_reference=st.none()
    | st.builds(
        AucReference,
        auc=st.floats(0, 1, exclude_min=True),
        kind=st.sampled_from(["run", "stated"]),
        source=text,
        weights_sha256=st.none() | sha256,
    ),
    attack=st.none() | text,
    attacks=st.none()
    | st.dictionaries(text, st.builds(AttackResult, auc=share, stderr=positive), max_size=2),
)
run_results = st.builds(
    lambda checkpoint, base, condition, tasks, limit, seed: make_result(tasks).model_copy(
        update={
            "checkpoint": checkpoint.model_copy(update={"base": base}),
            "condition": condition,
            "settings": make_result().settings.model_copy(update={"limit": limit, "seed": seed}),
        }
    ),
    checkpoints,
    st.none() | checkpoints,
    conditions,
    st.dictionaries(text, task_results, max_size=3),
    st.none() | st.integers(1, 1000),
    st.integers(0),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(tmp_path_factory.mktemp("run"))


@functools.cache
def checker(name: str) -> Draft202012Validator:
    """Making a schema takes longer than checking a file against it."""
    return Draft202012Validator(json_schemas()[name])


def walk(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every leaf of a JSON value with the way to it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from walk(part, (*path, key))
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from walk(part, (*path, i))
    else:
        yield path, value


def with_leaf(value: Any, path: tuple[Any, ...], leaf: object) -> Any:
    copy = json.loads(json.dumps(value))
    at = copy
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = leaf
    return copy


@given(found=st.lists(a_record, max_size=5))
@relaxed
def test_records_come_back_as_they_were(folder: RunFolder, found: list[SampleRecord]) -> None:
    sha256 = folder.write_records("t", found)
    back = folder.read_records("t", sha256)
    assert back == found
    assert [type(record) for record in back] == [type(record) for record in found]
    assert repr(back) == repr(found)  # -0.0 too


@given(found=generation_records(surrogates))
@relaxed
def test_lone_surrogates_in_records_come_back(folder: RunFolder, found: GenerationRecord) -> None:
    # A target from a JSON file may hold one; what was written must be readable again.
    sha256 = folder.write_records("t", [found])
    assert folder.read_records("t", sha256) == [found]


@given(found=st.lists(a_record, min_size=1, max_size=3))
@relaxed
def test_records_are_one_line_of_ascii_each_and_without_null(
    folder: RunFolder, found: list[SampleRecord]
) -> None:
    folder.write_records("t", found)
    content = folder.samples_file("t").read_bytes().decode("ascii")
    assert content.count("\n") == len(content.splitlines()) == len(found)
    for line in content.splitlines():
        assert all(leaf is not None for _, leaf in walk(json.loads(line)))


@given(result=run_results)
@relaxed
def test_a_run_comes_back_as_it_was(folder: RunFolder, result: RunResult) -> None:
    folder.write_run(result)
    assert read_run(folder.path) == result
    assert repr(read_run(folder.path)) == repr(result)


@given(result=run_results)
@relaxed
def test_a_written_run_has_no_null_and_fits_the_schema(
    folder: RunFolder, result: RunResult
) -> None:
    folder.write_run(result)
    content = json.loads(folder.run_file.read_bytes(), parse_constant=lambda name: 1 / 0)
    assert all(leaf is not None for _, leaf in walk(content))
    checker("run.schema.json").validate(content)


@given(found=a_record)
@relaxed
def test_a_written_record_fits_the_schema(folder: RunFolder, found: SampleRecord) -> None:
    folder.write_records("t", [found])
    content = json.loads(folder.samples_file("t").read_bytes())
    checker("record.schema.json").validate(content)


def test_a_path_that_is_no_unicode_can_be_written_and_read(folder: RunFolder) -> None:
    # Python names a file of undecodable bytes with lone surrogates.
    result = make_result()
    odd = result.checkpoint.model_copy(update={"path": "models/\udcff"})
    result = result.model_copy(update={"checkpoint": odd})
    folder.write_run(result)
    assert read_run(folder.path) == result


def test_the_schemas_in_docs_are_the_types(tmp_path: Path) -> None:
    write_schemas(tmp_path)
    names = {path.name for path in (ROOT / "docs" / "schema").glob("*.json")}
    assert names == set(json_schemas())
    for name, schema in json_schemas().items():
        shipped = (ROOT / "docs" / "schema" / name).read_text(encoding="utf-8")
        message = f"docs/schema/{name} is out of date: run `make schema`"
        assert json.loads(shipped) == schema, message
        assert shipped == (tmp_path / name).read_text(encoding="utf-8"), message


@pytest.mark.parametrize("name", ["run.schema.json", "record.schema.json"])
def test_a_schema_is_a_valid_and_strict_one(name: str) -> None:
    schema = json_schemas()[name]
    Draft202012Validator.check_schema(schema)
    objects = [part for part in _parts(schema) if part.get("properties")]
    assert len(objects) >= 2
    others = [part for part in objects if part.get("additionalProperties") is not False]
    # Only a condition has fields of its kind's own, and they are plain values.
    assert {part["title"] for part in others} <= {"ConditionOptions"}
    assert all({"anyOf"} == part["additionalProperties"].keys() for part in others)


def _parts(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for part in value.values():
            yield from _parts(part)
    elif isinstance(value, list):
        for part in value:
            yield from _parts(part)


def test_the_schema_refuses_what_the_reader_refuses() -> None:
    content = json.loads((GOLDEN / "good" / "run.json").read_bytes())
    check = checker("run.schema.json")
    check.validate(content)
    for path, leaf in (
        (("format_version",), 1),
        (("extra",), 1),
        (("tasks", "toy_verbmem", "score"), 1.0),
        (("tasks", "toy_privleak", "auc"), 1.5),
        (("checkpoint", "weights_sha256"), "abc"),
    ):
        assert not check.is_valid(with_leaf(content, path, leaf)), path


# The golden logs, kept to be read for ever.


def test_a_run_of_format_1_is_read_as_one_of_format_2() -> None:
    old = json.loads((GOLDEN / "format_1" / "run.json").read_bytes())
    assert old["format_version"] == 1
    assert old["precision"]["scheme"] == "scripted"
    assert read_run(GOLDEN / "format_1") == read_run(GOLDEN / "good")


QUANTIZED_1 = {
    "name": "bnb-fp4",
    "bits": 4.0,
    "scheme": "FP4",
    "backend": "bitsandbytes",
    "options": {"block_size": 64, "double_quant": False},
    "kernel": "dequantized",
    "proof": {
        "module_types": {"Linear4bit": 2},
        "quantized_modules": {"layers.*.q": 2},
        "unquantized": {"lm_head.weight": 10},
        "weights_by_dtype": {"uint8": 10},
        "quantized_weights": 20,
        "total_weights": 30,
        "weight_bytes": 99,
        "compared_modules": 2,
        "on_grid": False,
    },
}


def test_a_precision_of_format_1_is_a_condition_of_format_2() -> None:
    content = json.loads((GOLDEN / "format_1" / "run.json").read_bytes())
    condition = RunResult.model_validate(content | {"precision": QUANTIZED_1}).condition
    assert (condition.name, condition.kind) == ("bnb-fp4", "quantized")
    options = condition.options
    assert (options.bits, options.scheme, options.backend) == (4, "FP4", "bitsandbytes")
    assert (options.kernel, options.calibration) == ("dequantized", None)
    assert options.further == {"block_size": 64, "double_quant": False}
    assert condition.proof is not None
    assert condition.proof.covered_modules == {"layers.*.q": 2}
    assert (condition.proof.covered_weights, condition.proof.total_weights) == (20, 30)
    assert condition.proof.uncovered == {"lm_head.weight": 10}


@pytest.mark.parametrize(
    "change",
    [
        {"options": {"bits": 8}},  # it would take the place of the other
        {"options": {"a": None}},
        {"options": None},
        {"bits": 0},
        {"kernel": "fast"},
        {"name": "../x"},
        {"extra": [1]},
        {"proof": {**QUANTIZED_1["proof"], "more": 1}},  # type: ignore[dict-item]
    ],
)
def test_a_precision_of_format_1_is_as_strict(change: dict[str, Any]) -> None:
    content = json.loads((GOLDEN / "format_1" / "run.json").read_bytes())
    with pytest.raises(ValidationError):
        RunResult.model_validate(content | {"precision": {**QUANTIZED_1, **change}})


@pytest.mark.parametrize("version", [True, "1", 0, 3, None])
def test_an_unknown_format_is_not_upgraded(version: object) -> None:
    content = json.loads((GOLDEN / "format_1" / "run.json").read_bytes())
    with pytest.raises(ValidationError):
        RunResult.model_validate(content | {"format_version": version})


def test_the_good_log_loads_with_its_records() -> None:
    result = read_run(GOLDEN / "good")
    assert list(result.tasks) == ["toy_knowmem_f", "toy_privleak", "toy_verbmem"]
    assert result.tasks["toy_knowmem_f"].value == 50.0
    leak = result.tasks["toy_privleak"]
    assert leak.auc == pytest.approx(6 / 9)
    assert leak.auc_reference is not None
    assert leak.value == pytest.approx((6 / 9 - 3.5 / 9) / (3.5 / 9) * 100)
    folder = RunFolder(GOLDEN / "good")
    for name, task in result.tasks.items():
        found = folder.read_records(name, task.records_sha256)
        splits = 2 if name == "toy_privleak" else 1
        assert len(found) == splits * task.n


def test_the_good_log_would_be_written_the_same_today(tmp_path: Path) -> None:
    # A change here needs a new format_version, or is a mistake.
    RunFolder(tmp_path).write_run(read_run(GOLDEN / "good"))
    assert (tmp_path / "run.json").read_bytes() == (GOLDEN / "good" / "run.json").read_bytes()


def test_the_good_log_fits_the_schemas() -> None:
    run_schema, record_schema = (checker(f"{kind}.schema.json") for kind in ("run", "record"))
    run_schema.validate(json.loads((GOLDEN / "good" / "run.json").read_bytes()))
    lines = [
        json.loads(line)
        for path in (GOLDEN / "good" / "samples").iterdir()
        for line in path.read_text(encoding="ascii").splitlines()
    ]
    assert len(lines) == 12
    for line in lines:
        record_schema.validate(line)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "tasks.toy_verbmem.value: Input should be a finite number"),
        ("wrong_version", "has format_version 3; this version of unlearnbench reads 1 and 2"),
        ("truncated", "is no valid JSON"),
        ("missing", "cannot be read"),
    ],
)
def test_a_bad_log_raises_and_names_the_file(name: str, said: str) -> None:
    with pytest.raises(ResultError, match=said) as raised:
        read_run(GOLDEN / name)
    assert str(GOLDEN / name / "run.json") in str(raised.value)
    assert "\n" not in str(raised.value)


GOOD = json.loads((GOLDEN / "good" / "run.json").read_bytes())
LEAVES = dict(walk(GOOD))
NUMBERS = [path for path, leaf in LEAVES.items() if isinstance(leaf, float)]


def refused(folder: RunFolder, content: object) -> str:
    folder.run_file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ResultError) as raised:
        read_run(folder.path)
    assert str(folder.run_file) in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_of_a_run_may_be_nan_or_infinite(folder: RunFolder, value: float) -> None:
    assert len(NUMBERS) > 80
    for path in NUMBERS:
        assert "finite" in refused(folder, with_leaf(GOOD, path, value)), path


def test_no_leaf_of_a_run_may_be_null(folder: RunFolder) -> None:
    # What was not measured is absent; a null is someone else's way of saying that it failed.
    accepted = []
    for path in LEAVES:
        folder.run_file.write_text(json.dumps(with_leaf(GOOD, path, None)), encoding="utf-8")
        try:
            read_run(folder.path)
        except ResultError:
            continue
        accepted.append(".".join(map(str, path)))
    assert not accepted


def test_no_number_of_a_run_may_be_text_or_a_truth_value(folder: RunFolder) -> None:
    for path in NUMBERS:
        for leaf in (str(LEAVES[path]), True):
            refused(folder, with_leaf(GOOD, path, leaf))


def test_no_object_of_a_run_may_have_an_extra_key(folder: RunFolder) -> None:
    # Objects with free keys hold text or numbers, so a list is out of place there too.
    objects = {path[:-1] for path in LEAVES if path and isinstance(path[-1], str)}
    assert len(objects) > 20
    for path in objects:
        refused(folder, with_leaf(GOOD, (*path, "extra"), [1]))


def test_a_task_without_value_and_without_auc_is_refused(folder: RunFolder) -> None:
    content = json.loads(json.dumps(GOOD))
    del content["tasks"]["toy_verbmem"]["value"]
    assert "measures nothing" in refused(folder, content)
    with pytest.raises(ValidationError, match="measures nothing"):
        make_task(value=None)
    assert make_task(value=None, auc=0.5).value is None


@pytest.mark.parametrize(
    ("path", "leaf"),
    [
        (("tasks", "toy_verbmem", "n"), 0),
        (("tasks", "toy_verbmem", "n"), 3.5),
        (("tasks", "toy_verbmem", "stderr"), -1.0),
        (("tasks", "toy_verbmem", "want"), "lower"),
        (("tasks", "toy_verbmem", "ci"), [1.0]),
        (("tasks", "toy_verbmem", "records_sha256"), "0" * 63),
        (("tasks", "toy_privleak", "auc"), -0.01),
        (("tasks", "toy_privleak", "auc_reference", "auc"), 0.0),
        (("tasks", "toy_privleak", "auc_reference", "kind"), "assumed"),
        (("created",), "yesterday"),
        (("created",), "2025-01-31T00:00:00Z\n"),
        (("condition", "options", "bits"), 0),
        (("format_version",), "1"),
        (("format_version",), 0),
    ],
)
def test_a_value_out_of_place_is_refused(
    folder: RunFolder, path: tuple[str, ...], leaf: object
) -> None:
    refused(folder, with_leaf(GOOD, path, leaf))


@pytest.mark.parametrize(
    "content", [b"", b"null", b"[]", b"1", b'"x"', b"{}", b"\xff\xfe", b"[" * 100_000, b"{" * 9]
)
def test_a_file_that_is_no_result_is_refused(folder: RunFolder, content: bytes) -> None:
    folder.run_file.write_bytes(content)
    with pytest.raises(ResultError) as raised:
        read_run(folder.path)
    assert str(folder.run_file) in str(raised.value)


GENERATION = {
    "task": "t",
    "id": "forget/0",
    "prompt": "p",
    "output": "o",
    "target": "t",
    "n_tokens": 1,
    "score": 0.5,
    "scores": {"rouge1": 0.5},
}
LIKELIHOOD = {"task": "t", "id": "a/0", "split": "a", "n_tokens": 5, "scores": {"PPL": 1.0}}


PUT = {"prompt": "q", "rows": ["forget/1"], "scores": [0.5, 0.0], "search": 0}


@pytest.mark.parametrize("good", [GENERATION, LIKELIHOOD, {**GENERATION, "asked": PUT}])
def test_a_record_is_as_strict(good: dict[str, Any]) -> None:
    record = RECORD_ADAPTER.validate_json(json.dumps(good))
    assert record.model_dump(mode="json", exclude_none=True) == good
    for path, leaf in walk(good):
        bad: list[object] = [None, [1]]
        if isinstance(leaf, float):
            bad += [math.nan, math.inf, -math.inf, "0.5", True]
        for value in bad:
            with pytest.raises(ValidationError):
                RECORD_ADAPTER.validate_json(json.dumps(with_leaf(good, path, value)))
    for key in set(good) - {"n_tokens", "asked"}:  # which not every record has
        with pytest.raises(ValidationError):
            RECORD_ADAPTER.validate_json(json.dumps({k: v for k, v in good.items() if k != key}))
    with pytest.raises(ValidationError):
        RECORD_ADAPTER.validate_json(json.dumps(good | {"extra": 1}))


@pytest.mark.parametrize(
    "change", [{"score": -0.01}, {"score": 1.01}, {"n_tokens": -1}, {"n_tokens": 1.5}]
)
def test_a_generation_record_out_of_bounds_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RECORD_ADAPTER.validate_json(json.dumps(GENERATION | change))


@pytest.mark.parametrize("change", [{"n_tokens": 0}, {"scores": {}}])
def test_a_likelihood_record_without_a_measurement_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RECORD_ADAPTER.validate_json(json.dumps(LIKELIHOOD | change))


def test_results_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValidationError):
        make_task().value = 0.0
