from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from unlearnbench.errors import OptionError, OutputError, ResultError
from unlearnbench.util.files import (
    content_sha256,
    file_sha256,
    read_bytes,
    read_json,
    write_text,
    writing,
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.json"


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
