from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict, field_validator

from unlearnbench.errors import CheckpointError, OptionError, OutputError, ResultError
from unlearnbench.util.files import (
    content_sha256,
    file_sha256,
    read_bytes,
    read_json,
    read_model,
    write_text,
    writing,
)


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


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.json"


def test_a_json_file_is_a_model(file: Path) -> None:
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
def test_what_is_wrong_is_one_line_with_its_place(file: Path, content: str, said: str) -> None:
    file.write_text(content)
    with pytest.raises(CheckpointError) as raised:
        read_model(file, Outer, CheckpointError)
    assert str(raised.value).startswith(f"{file}{said}")
    assert str(raised.value).isprintable()


def test_a_file_that_cannot_be_read_is_the_callers_error(file: Path) -> None:
    for path, said in [(file, "No such file"), (file.parent, "Is a directory")]:
        with pytest.raises(OptionError, match=rf"cannot be read \({said}"):
            read_bytes(path, OptionError)
        with pytest.raises(OptionError, match=rf"cannot be read \({said}"):
            file_sha256(path, OptionError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(ResultError, match="is no regular file"):
        read_json(file, ResultError)


def test_what_is_too_large_is_not_read(file: Path) -> None:
    file.write_bytes(b" " * 2048 + b"1")
    assert read_json(file, ResultError, most=2049) == 1
    with pytest.raises(ResultError, match="is larger than 2 KiB; refused"):
        read_json(file, ResultError, most=2048)


def test_hashes(file: Path) -> None:
    file.write_bytes(b"x" * 5_000_000)
    assert file_sha256(file, ResultError) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert content_sha256({"b": 1, "a": "\u2028"}) == content_sha256({"a": "\u2028", "b": 1})
    text = json.dumps([1, {"a": None}], separators=(",", ":"))
    assert content_sha256([1, {"a": None}]) == hashlib.sha256(text.encode()).hexdigest()


def test_a_failed_write_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as raised, writing(tmp_path / "f"):
        raise OSError(28, "No space left on device")
    assert str(raised.value) == (
        f"{tmp_path / 'f'} cannot be written (No space left on device); free some space or use "
        "another --output"
    )


def test_a_file_that_the_user_named_is_written_with_its_folder(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b.txt", "é\n")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é\n".encode()
    with pytest.raises(ResultError, match=r"b\.txt/c cannot be written .*give another path"):
        write_text(tmp_path / "a" / "b.txt" / "c", "")
