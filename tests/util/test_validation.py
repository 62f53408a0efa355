from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from unlearnbench.errors import CheckpointError, ResultError, TaskError
from unlearnbench.util.validation import read_model, read_yaml

TEXT = """\
# a comment
name: x

nested:
  first: 1
  list:
    - a
    - b: 2
flow: {one: 1,
  two: 2}
"""


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def fault(folder: Path, text: str | bytes) -> str:
    path = write(folder, text)
    with pytest.raises(TaskError) as caught:
        read_yaml(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(path))


def test_value_and_path(tmp_path: Path) -> None:
    found = read_yaml(write(tmp_path, TEXT))
    assert found.path == tmp_path / "file.yaml"
    assert found.value == {
        "name": "x",
        "nested": {"first": 1, "list": ["a", {"b": 2}]},
        "flow": {"one": 1, "two": 2},
    }


@pytest.mark.parametrize(
    ("loc", "line"),
    [
        ((), 1),
        (("name",), 2),
        (("nested",), 4),
        (("nested", "first"), 5),
        (("nested", "list"), 6),
        (("nested", "list", 0), 7),
        (("nested", "list", 1), 8),
        (("nested", "list", 1, "b"), 8),
        (("flow", "one"), 9),
        (("flow", "two"), 10),
        # What is not there is shown at the deepest part that is.
        (("absent",), 1),
        (("nested", "absent"), 4),
        (("nested", "list", 2), 6),
        (("nested", "list", "b"), 6),
        (("name", "deeper"), 2),
    ],
)
def test_where(tmp_path: Path, loc: tuple[str | int, ...], line: int) -> None:
    found = read_yaml(write(tmp_path, TEXT))
    assert found.where(*loc) == f"{found.path}:{line}"


def test_crlf_and_a_byte_order_mark_do_not_shift_lines(tmp_path: Path) -> None:
    found = read_yaml(write(tmp_path, "\ufeff" + TEXT.replace("\n", "\r\n")))
    assert found.value["name"] == "x"
    assert found.where("flow", "two").endswith(":10")


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("", 1, "expected `key: value` lines"),
        ("- a\n- b\n", 1, "expected `key: value` lines"),
        ("just words\n", 1, "expected `key: value` lines"),
        ("a: 1\nb: [\n", 3, "no valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "no valid YAML"),
        ("a: 1\nb: c: d\n", 2, "no valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "single document"),
        ("a: 1\nb: *nowhere\n", 2, "aliases"),
        ("a: 1\nb: 2\n\na: 3\n", 4, "duplicate key 'a'"),
        ("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n", 5, "duplicate key 'c'"),
        ("a:\n  - b: 1\n    b: 2\n", 3, "duplicate key 'b'"),
        ("a: &x [1]\nb: *x\n", 2, "aliases"),
        ("a: 1\nb: &x {c: 1}\nd: [*x, *x]\n", 3, "aliases"),
        ("a: 1\nb: &x [*x]\n", 2, "aliases"),
        ('a: 1\nb: !!python/object/apply:os.system ["true"]\n', 2, "python/object/apply:os.system"),
        ("a: 1\nb: !!python/name:os.system\n", 2, "python/name:os.system"),
        ("a: 1\nb: !local x\n", 2, "!local"),
        ("a: 1\n? [b, c]\n: 2\n", 2, ""),
        ("a: 1\n? {b: c}\n: 2\n", 2, ""),
        ("[" * 1000, 1, "nested too deeply"),
        ("a: " + "{b: " * 1000, 1, "nested too deeply"),
    ],
)
def test_faults_name_their_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    message = fault(tmp_path, text)
    assert message.startswith(f":{line}: ")
    assert says in message


# Valid YAML whose values the YAML library cannot make.
@pytest.mark.parametrize(
    "value",
    [
        "2020-99-99",
        "2020-01-01T99:00:00Z",
        "!!int words",
        "!!float words",
        "!!bool words",
        "!!timestamp words",
        "1" * 5000,
        '"\\UFFFFFFFF"',
    ],
)
def test_values_that_cannot_be_made_are_faults_too(tmp_path: Path, value: str) -> None:
    assert fault(tmp_path, f"a: 1\nb: {value}\nc: 2\n").startswith(":2: ")


@pytest.mark.parametrize(
    "text",
    # A set has no order, and merged keys would pass by the check for duplicates.
    ["a: 1\nb: !!set {x, y}\n", "a: 1\n<<: {a: 2}\n", "a: 1\nb: !!omap [x: y]\n"],
)
def test_only_plain_data(tmp_path: Path, text: str) -> None:
    assert fault(tmp_path, text).startswith(":2: ")


def test_a_thousandfold_alias_is_refused_before_it_is_expanded(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "aliases" in fault(tmp_path, "\n".join(lines))


def test_control_characters_are_not_echoed(tmp_path: Path) -> None:
    message = fault(tmp_path, '"a\\e[31m": 1\n"a\\e[31m": 2\n')
    assert "31m" in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"a: \xff\n", "cannot be read"), (b"a: \x00\n", ":1: no valid YAML")],
)
def test_bytes_that_are_no_text(tmp_path: Path, data: bytes, says: str) -> None:
    assert says in fault(tmp_path, data)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(TaskError, match="cannot be read") as caught:
            read_yaml(path)
        assert str(caught.value).startswith(f"{path} ")


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    n: int = 0


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    inner: Inner
    note: str = ""

    @field_validator("note")
    @classmethod
    def _plain(cls, note: str) -> str:
        if "bad" in note:
            raise ValueError("say it otherwise")
        return note


def test_a_json_file_is_a_model(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"inner": {"n": 3}, "note": "\\ud800"}')  # pydantic's own parser refuses these
    assert read_model(file, Outer, ResultError) == Outer(inner=Inner(n=3), note="\ud800")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"inner": {"n": "3"}}', ": inner.n: Input should be a valid integer"),
        ('{"inner": {"m": 3}}', ": inner.m: Extra inputs are not permitted"),
        ("{}", ": inner: Field required"),
        ('{"inner": {}, "note": "bad"}', ": note: say it otherwise"),
        ("[]", ": Input should be a valid dictionary or instance of Outer"),
        ("", " is no valid JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 100_000, " is no valid JSON: maximum recursion depth"),
        ("\x1b[31m", r" is no valid JSON: "),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(content)
    with pytest.raises(CheckpointError) as raised:
        read_model(file, Outer, CheckpointError)
    assert str(raised.value).startswith(f"{file}{said}")
    assert str(raised.value).isprintable()
