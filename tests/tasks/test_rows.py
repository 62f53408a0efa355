from __future__ import annotations

import datetime
import decimal
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import write_jsonl
from unlearnbench.errors import DataError
from unlearnbench.tasks import rows as data
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask
from unlearnbench.tasks.rows import DataOptions, load_splits, read_rows, rows_sha256
from unlearnbench.tasks.spec import SplitRows

ROWS: list[dict[str, Any]] = [{"text": "one", "n": 1}, {"text": "zwei é"}, {"text": "three"}]
# Written out: {"n":1,"text":"one"} and so on, one a line.
ROWS_SHA256 = hashlib.sha256(
    b'{"n":1,"text":"one"}\n{"text":"zwei \\u00e9"}\n{"text":"three"}\n'
).hexdigest()


def make_spec(**pin: Any) -> LikelihoodTask:
    """A task that reads my-org/set/texts/forget and .../holdout; ``pin`` is forget's."""
    return LikelihoodTask.model_validate(
        {
            "task": "toy",
            "description": "A toy.",
            "dataset_path": "my-org/set",
            "dataset_name": "texts",
            "output_type": "token_loglikelihood",
            "member_split": "forget",
            "nonmember_split": "holdout",
            "doc_to_text": "{{text}}",
            "attack": "Min-40%",
            "metric": "privleak",
            "want": "zero",
            "splits": {"forget": {"rows": 3, **pin}, "holdout": {"rows": 1}},
            "metadata": {"version": 1},
        }
    )


def write_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    columns = {key: [row.get(key) for row in rows] for key in keys}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


WRITERS: dict[str, Callable[[Path, list[dict[str, Any]]], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".parquet": write_parquet,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with both splits of ``make_spec``."""
    base = tmp_path / "data" / "my-org" / "set" / "texts"
    write_jsonl(base / "forget.jsonl", ROWS)
    write_jsonl(base / "holdout.jsonl", [{"text": "four"}])
    return tmp_path / "data"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hub answers with one row a split and notes which splits it was asked for."""
    asked: list[str] = []

    def answer(spec: LikelihoodTask, split: str, options: DataOptions) -> list[dict[str, Any]]:
        asked.append(split)
        return [{"text": "hub"}] * spec.splits[split].rows

    monkeypatch.setattr(data, "_read_hub", answer)
    return asked


def texts(found: Mapping[str, SplitRows]) -> dict[str, list[object]]:
    return {name: [row["text"] for row in split.rows] for name, split in found.items()}


def sources(found: Mapping[str, SplitRows]) -> set[str]:
    return {split.source for split in found.values()}


# Where rows come from.


def test_local_rows_in_file_order(folder: Path, no_hub: list[str]) -> None:
    found = load_splits(make_spec(), DataOptions(folder))
    assert list(found) == ["forget", "holdout"]
    assert found["forget"] == SplitRows("forget", tuple(ROWS), "local", ROWS_SHA256)
    assert sources(found) == {"local"}
    assert no_hub == []


def test_local_before_package_before_hub(
    folder: Path, tmp_path: Path, no_hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    for split, count in (("forget", 3), ("holdout", 1)):
        path = package / "my-org" / "set" / "texts" / f"{split}.jsonl"
        write_jsonl(path, [{"text": "packed"}] * count)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    without = load_splits(make_spec(), DataOptions(elsewhere))
    assert sources(without) == {"hub"}
    assert texts(without) == {"forget": ["hub"] * 3, "holdout": ["hub"]}
    assert no_hub == ["forget", "holdout"]

    monkeypatch.setattr(data, "PACKAGE_DATA", package)
    for options in (DataOptions(), DataOptions(elsewhere)):
        found = load_splits(make_spec(), options)
        assert sources(found) == {"package"}
        assert texts(found) == {"forget": ["packed"] * 3, "holdout": ["packed"]}
    assert texts(load_splits(make_spec(), DataOptions(folder)))["holdout"] == ["four"]
    assert no_hub == ["forget", "holdout"]


def test_a_split_that_the_local_data_set_lacks_is_not_filled_in(
    folder: Path, tmp_path: Path, no_hub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = folder / "my-org" / "set" / "texts"
    (base / "holdout.jsonl").unlink()
    package = tmp_path / "package"
    write_jsonl(package / "my-org" / "set" / "texts" / "holdout.jsonl", [{"text": "packed"}])
    monkeypatch.setattr(data, "PACKAGE_DATA", package)
    with pytest.raises(DataError, match="split 'holdout' is missing") as caught:
        load_splits(make_spec(), DataOptions(folder))
    assert f"{base / 'holdout'}.jsonl|.json|.parquet" in str(caught.value)
    assert no_hub == []


def test_no_such_data_folder(tmp_path: Path, no_hub: list[str]) -> None:
    for path in (tmp_path / "nowhere", write_file(tmp_path / "file", b"")):
        with pytest.raises(DataError, match="no data folder") as caught:
            load_splits(make_spec(), DataOptions(path))
        assert str(path) in str(caught.value)
        assert "<dataset_path>/<subset>/<split>.jsonl" in str(caught.value)
    assert no_hub == []


def test_two_formats_of_one_split(folder: Path) -> None:
    write_json(folder / "my-org" / "set" / "texts" / "forget.json", ROWS)
    with pytest.raises(DataError, match="forget.jsonl, forget.json; keep one") as caught:
        load_splits(make_spec(), DataOptions(folder))
    assert str(folder / "my-org" / "set" / "texts") in str(caught.value)


def test_a_name_with_a_dot_keeps_it(tmp_path: Path) -> None:
    pins = {"v1.5": {"rows": 1}, "v1.6": {"rows": 1}}
    fields = {"member_split": "v1.5", "nonmember_split": "v1.6", "splits": pins}
    spec = LikelihoodTask.model_validate({**make_spec().model_dump(), **fields})
    for name in pins:
        write_jsonl(tmp_path / "my-org" / "set" / "texts" / f"{name}.jsonl", [{"text": name}])
    found = load_splits(spec, DataOptions(tmp_path))
    assert texts(found) == {"v1.5": ["v1.5"], "v1.6": ["v1.6"]}


# Formats.


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_gives_the_same_rows_and_hash(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, ROWS)
    found = read_rows(path)
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == ROWS
    assert rows_sha256(found) == ROWS_SHA256


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_is_found_by_its_name(folder: Path, suffix: str) -> None:
    base = folder / "my-org" / "set" / "texts"
    (base / "forget.jsonl").unlink()
    WRITERS[suffix](base / f"forget{suffix}", ROWS)
    found = load_splits(make_spec(sha256=ROWS_SHA256), DataOptions(folder))
    assert texts(found)["forget"] == ["one", "zwei é", "three"]


@pytest.mark.parametrize("char", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r"])
def test_no_character_inside_a_text_splits_a_line(tmp_path: Path, char: str) -> None:
    rows = [{"text": f"a{char}b"}, {"text": "c"}]
    path = tmp_path / "rows.jsonl"
    raw = char if char in "\u2028\u2029\x85" else json.dumps(char)[1:-1]
    path.write_bytes(f'{{"text": "a{raw}b"}}\n{{"text": "c"}}\n'.encode())
    assert read_rows(path) == rows


def test_crlf_and_a_missing_last_line_end(tmp_path: Path) -> None:
    path = write_file(tmp_path / "rows.jsonl", b'{"text":\r"a\\r"}\r\n{"text": "b"}')
    assert read_rows(path) == [{"text": "a\r"}, {"text": "b"}]


@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_an_escape_of_half_a_surrogate_pair_survives(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows{suffix}"
    WRITERS[suffix](path, [{"text": "a\ud800b"}])
    found = read_rows(path)
    assert found == [{"text": "a\ud800b"}]
    assert rows_sha256(found) == hashlib.sha256(b'{"text":"a\\ud800b"}\n').hexdigest()


TWO: list[dict[str, Any]] = [{"text": "a"}, {"text": "b", "more": 1}]


@pytest.mark.field(
    "Data, files, commands",
    'JSON Lines named `.json`, plain strings, `{"data": []}`, blank lines, byte order mark',
    "runs",
)
@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("x.json", b'{"text": "a"}\n{"text": "b", "more": 1}\n', TWO),  # Dataset.to_json
        ("x.json", b'{"text": "a"}\n', TWO[:1]),
        ("x.json", b'{"version": 1, "data": [{"text": "a"}, {"text": "b", "more": 1}]}', TWO),
        ("x.json", b'\xef\xbb\xbf[{"text": "a"}]', TWO[:1]),
        ("x.json", b'["a", "b"]', [{"text": "a"}, {"text": "b"}]),
        ("x.jsonl", b'"a"\n"b"\n', [{"text": "a"}, {"text": "b"}]),
        ("x.jsonl", b'\n{"text": "a"}\r\n \r\n{"text": "b", "more": 1}\n\n', TWO),
        ("x.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', TWO[:1]),
    ],
)
def test_the_shapes_that_data_sets_come_in(
    tmp_path: Path, name: str, content: bytes, rows: list[dict[str, Any]]
) -> None:
    assert read_rows(write_file(tmp_path / name, content)) == rows


def write_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


DIGITS = b"1" * 5000


@pytest.mark.parametrize(
    ("name", "content", "at", "says"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', ":2: ", "no valid JSON"),
        ("x.jsonl", b'{"a": 1}\n\n{"a": 2}\n\n{"a"\n', ":5: ", "no valid JSON"),
        ("x.jsonl", b'{"a": 1}\n{"a": 2}\n{"a": "\t"}\n', ":3: ", "no valid JSON"),
        ("x.jsonl", b'{"a": 1}\nnull\n', ":2: ", "null"),
        ("x.jsonl", b'{"a": 1} {"a": 2}\n', ":1: ", "no valid JSON"),
        ("x.jsonl", b'{"a": 1}\n{"a": ' + DIGITS + b"}\n", ":2: ", "no valid JSON"),
        ("x.jsonl", b'{"a": 1}\n[1]\n', ": ", "row 2 is no JSON object"),
        ("x.jsonl", b'{"a": 1}\n{"a": 1}\n"a"\n', ": ", "row 3 is no JSON object"),
        ("x.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ": ", "cannot be read"),
        ("x.jsonl", b'{"a": ' + b"[" * 100_000, ": ", "cannot be read"),
        ("x.json", b'[{"a": 1},\n{"a": 2},\n{"a"]', ":3: ", "no valid JSON"),
        ("x.json", b'{"a": 1}\n{"a": 2}\n{"a"\n', ":3: ", "no valid JSON"),
        ("x.json", b'{"a": 1} {"a": 2}\n', ":1: ", "no valid JSON"),
        ("x.json", b'["a", {"a": 1}]', ": ", "row 1 is no JSON object"),
        ("x.json", b'{"data": [1]}', ": ", "row 1 is no JSON object"),
        ("x.json", b"7", ": ", "expected a list of objects"),
        ("x.json", b"", ":1: ", "no valid JSON"),
        ("x.json", b'[{"a": 1}, 2]', ": ", "row 2 is no JSON object"),
        ("x.json", b'[{"a": 1}, null]', ": ", "row 2 is no JSON object"),
        ("x.json", b'["\xff"]', ": ", "cannot be read"),
        ("x.json", b"[" * 100_000, ": ", "cannot be read"),
        ("x.json", b'[{"a": ' + DIGITS + b"}]", ":", "no valid JSON"),
        ("x.parquet", b"", ": ", "no valid parquet"),
        ("x.parquet", b"PAR1 not really PAR1", ": ", "no valid parquet"),
    ],
)
def test_malformed_files(tmp_path: Path, name: str, content: bytes, at: str, says: str) -> None:
    path = write_file(tmp_path / name, content)
    with pytest.raises(DataError, match=says) as caught:
        read_rows(path)
    message = str(caught.value)
    assert message.startswith(f"{path}{at}")
    assert message.isprintable()
    assert len(message) < 1000


@pytest.mark.parametrize(
    "value",
    [datetime.date(2024, 1, 2), datetime.datetime(2024, 1, 2), b"x", decimal.Decimal("1.5")],
)
def test_a_column_that_json_cannot_hold(folder: Path, value: object) -> None:
    base = folder / "my-org" / "set" / "texts"
    (base / "forget.jsonl").unlink()
    write_parquet(base / "forget.parquet", [{"text": "a", "extra": value}] * 3)
    with pytest.raises(DataError, match="extra"):
        load_splits(make_spec(), DataOptions(folder))


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    write_parquet(path, ROWS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="no valid parquet"):
        read_rows(path)


# Pins.


@pytest.mark.parametrize("suffix", WRITERS)
def test_zero_rows(folder: Path, suffix: str) -> None:
    base = folder / "my-org" / "set" / "texts"
    (base / "forget.jsonl").unlink()
    WRITERS[suffix](base / f"forget{suffix}", [])
    for allowed in (False, True):
        with pytest.raises(DataError, match=r"toy: split 'forget' \(local\) has no rows"):
            load_splits(make_spec(), DataOptions(folder, allow_drift=allowed))


WRONG = "0" * 64


@pytest.mark.parametrize(
    ("pin", "drift"),
    [
        ({"rows": 4}, "3 rows instead of 4"),
        ({"rows": 2, "sha256": ROWS_SHA256}, "3 rows instead of 2"),
        ({"sha256": WRONG}, f"content hash {ROWS_SHA256[:12]} instead of {WRONG[:12]}"),
    ],
)
def test_other_rows_than_the_pinned_ones(folder: Path, pin: dict[str, Any], drift: str) -> None:
    spec = make_spec(**pin)
    with pytest.raises(DataError) as caught:
        load_splits(spec, DataOptions(folder))
    assert f"toy: split 'forget' (local) is not the pinned data: {drift};" in str(caught.value)
    assert "--allow-data-drift" in str(caught.value)

    found = load_splits(spec, DataOptions(folder, allow_drift=True))
    assert found["forget"].drift == drift
    assert found["forget"].sha256 == ROWS_SHA256
    assert len(found["forget"].rows) == 3
    assert found["holdout"].drift is None


def test_the_pinned_rows_are_no_drift(folder: Path) -> None:
    for allowed in (False, True):
        options = DataOptions(folder, allow_drift=allowed)
        assert load_splits(make_spec(sha256=ROWS_SHA256), options)["forget"].drift is None


def test_pins_hold_for_the_hub_too(no_hub: list[str]) -> None:
    with pytest.raises(DataError, match=r"\(hub\) is not the pinned data: content hash"):
        load_splits(make_spec(sha256=ROWS_SHA256), DataOptions())


# The hash.


def test_hash_is_of_content_only() -> None:
    assert rows_sha256([]) == hashlib.sha256(b"").hexdigest()
    assert rows_sha256(ROWS) == ROWS_SHA256
    assert rows_sha256([dict(reversed(row.items())) for row in ROWS]) == ROWS_SHA256
    assert rows_sha256([{**row, "added": None} for row in ROWS]) == ROWS_SHA256
    assert rows_sha256(iter(ROWS)) == ROWS_SHA256


values = st.text() | st.integers() | st.floats(allow_nan=False) | st.booleans()
rows_of_values = st.lists(
    st.dictionaries(st.text(max_size=3), values, min_size=1, max_size=3), min_size=1, max_size=4
)
quick = settings(
    max_examples=100,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@quick
@given(rows=rows_of_values, choice=st.data())
def test_hash_changes_with_any_value(rows: list[dict[str, Any]], choice: st.DataObject) -> None:
    index = choice.draw(st.integers(0, len(rows) - 1))
    key = choice.draw(st.sampled_from(sorted(rows[index])))
    old = rows[index][key]
    # 1, 1.0 and True are equal in Python and are not the same value of a row.
    other = values.filter(lambda new: (type(new), repr(new)) != (type(old), repr(old)))
    new = choice.draw(other | st.none())
    changed = [dict(row) for row in rows]
    changed[index][key] = new
    assert rows_sha256(changed) != rows_sha256(rows)


@quick
@given(rows=rows_of_values)
def test_hash_changes_with_rows_and_their_order(rows: list[dict[str, Any]]) -> None:
    numbered = [{**row, "#": i} for i, row in enumerate(rows)]
    others = [numbered[1:], numbered[:-1], [*numbered, numbered[0]], [numbered[-1], *numbered]]
    if len(rows) > 1:
        others.append(numbered[::-1])
    assert rows_sha256(numbered) not in map(rows_sha256, others)


@quick
@given(rows=rows_of_values)
def test_hash_survives_jsonl(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert rows_sha256(read_rows(tmp_path / "rows.jsonl")) == rows_sha256(rows)


def test_the_star_import_of_the_docs_has_what_they_use() -> None:
    # docs/add-a-task.md hashes a file with `from unlearnbench.tasks.rows import *`.
    assert {"read_rows", "rows_sha256"} <= set(vars(data))


def test_real_rows_in_every_format(muse_data: Path, tmp_path: Path) -> None:
    path = muse_data / "muse-bench" / "MUSE-News" / "knowmem" / "forget_qa.jsonl"
    rows = read_rows(path)
    assert len(rows) == 100
    for suffix, write in WRITERS.items():
        copy = tmp_path / f"copy{suffix}"
        write(copy, [dict(row) for row in rows])
        assert read_rows(copy) == rows
        assert rows_sha256(read_rows(copy)) == rows_sha256(rows)


def test_a_file_of_another_kind_is_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a file of rows ends in \.jsonl"):
        read_rows(tmp_path / "x.csv")
