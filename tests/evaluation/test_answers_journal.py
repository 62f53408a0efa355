"""The journal itself: what it takes over, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench.errors import ModelOutputError, ResultError
from unlearnbench.evaluation.answers import Journal, _checksum, _dump
from unlearnbench.requests import Answer, Generated, Scored
from unlearnbench.runs.fingerprint import Fingerprint

FACTS = {"seed": 0, "task": "t"}
TEXTS = [
    Generated("t:a/0", "plain", 1),
    Generated("t:a/1", "half a pair \ud800, NUL \x00, \u2028 and \n", 9),
    Generated("t:a/2", "", 0),
]


def scored(name: str, *values: float) -> Scored:
    array = np.array(values, dtype=np.float64)
    return Scored(name, array, array - 1, array**2)


LOGS = [scored("t:a/0", -0.1, -1e-300, -np.pi), scored("t:a/0:lower", -2.0)]


def journal(
    path: Path, kind: type[Answer] = Generated, facts: Mapping[str, object] = FACTS
) -> Journal:
    ids = [*(answer.id for answer in TEXTS), *(answer.id for answer in LOGS)]
    return Journal(path, Fingerprint.of(facts), ids, kind)


def write(path: Path, answers: list[Generated] | list[Scored]) -> bytes:
    made = journal(path, type(answers[0]))
    for answer in answers:
        made.keep(answer)
    made.close()
    return path.read_bytes()


def read(path: Path, kind: type[Answer] = Generated) -> Journal:
    found = journal(path, kind)
    found.read()
    return found


def test_matches_are_kept_beside_the_figures(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    marks = np.array([True, False, True])
    write(path, [replace(LOGS[0], matches=marks)])
    (found,) = read(path, Scored).found.values()
    assert isinstance(found, Scored)
    assert found.matches is not None
    assert found.matches.tolist() == marks.tolist()
    line = json.loads(path.read_text().splitlines()[1])
    assert line["matches"] == "101"


@pytest.mark.parametrize("matches", ["10", "1012", 101, ["1", "0", "1"], "10x"])
def test_matches_that_are_not_the_tokens_are_refused(tmp_path: Path, matches: object) -> None:
    path = tmp_path / "j.jsonl"
    write(path, [replace(LOGS[0], matches=np.array([True, False, True]))])
    header, line = map(json.loads, path.read_text().splitlines())
    content = {**line, "matches": matches}
    before = header["sum"]
    del content["sum"]
    content["sum"] = _checksum(before, content)
    path.write_bytes(_dump(header) + b"\n" + _dump(content) + b"\n")
    with pytest.raises(ResultError, match="damaged or changed: (no scored|matches are)"):
        read(path, Scored)


def test_a_journal_is_made_with_its_first_answer(tmp_path: Path) -> None:
    path = tmp_path / "partial" / "t.jsonl"
    made = journal(path)
    made.close()
    assert not path.parent.exists()
    made.keep(TEXTS[0])
    assert path.read_bytes().count(b"\n") == 2, "with the system before keep returns"


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, TEXTS)
    assert list(read(path).found.values()) == TEXTS
    write(tmp_path / "s.jsonl", LOGS)
    found = read(tmp_path / "s.jsonl", Scored).found
    for want in LOGS:
        got = found[want.id]
        assert isinstance(got, Scored)
        for field in ("logprobs", "mean", "std"):
            assert getattr(got, field).tobytes() == getattr(want, field).tobytes()


@given(text=st.text(st.characters()), n=st.integers(0, 10**9))
@settings(deadline=None)
def test_any_text_is_one_line_and_comes_back(
    tmp_path_factory: pytest.TempPathFactory, text: str, n: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "t.jsonl"
    content = write(path, [Generated("t:a/0", text, n)])
    assert content.count(b"\n") == 2
    assert content.isascii()
    assert read(path).found == {"t:a/0": Generated("t:a/0", text, n)}


def test_cut_anywhere_whole_lines_are_kept_and_the_rest_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    whole = write(path, TEXTS)
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        found = read(path)
        kept = max(0, whole[:cut].count(b"\n") - 1)
        assert list(found.found.values()) == TEXTS[:kept]
        for answer in TEXTS[kept:]:
            found.keep(answer)
        found.close()
        assert path.read_bytes() == whole, cut


def test_garbage_after_the_last_line_break_is_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    whole = write(path, TEXTS)
    path.write_bytes(whole + b"\x00" * 4096)  # as a power failure may leave it
    assert list(read(path).found.values()) == TEXTS


def edit(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert content.count(old) == 1
        return content.replace(old, new)

    return change


def with_line(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[bytes], bytes]:
    return lambda content: b"".join(change(content.splitlines(keepends=True)))


def forged(**changes: object) -> Callable[[bytes], bytes]:
    """Line 2 changed by someone who makes the checksums fit."""

    def change(content: bytes) -> bytes:
        lines = [json.loads(line) for line in content.splitlines()][:2]
        lines[1] |= changes
        made, total = b"", ""
        for line in lines:
            del line["sum"]
            total = _checksum(total, line)
            made += _dump({**line, "sum": total}) + b"\n"
        return made

    return change


CHANGES: list[tuple[Callable[[bytes], bytes], str]] = [
    (edit(b'"plain"', b'"blain"'), r":2: damaged or changed: its checksum does not fit"),
    (edit(b'"n_tokens": 9', b'"n_tokens": 8'), r":3: .*checksum"),
    (with_line(lambda lines: [lines[0], *lines[2:]]), r":2: .*checksum"),
    (with_line(lambda lines: [lines[0], lines[2], lines[1], lines[3]]), r":2: .*checksum"),
    (with_line(lambda lines: lines[1:]), r":1: .*no journal of version 2"),
    (with_line(lambda lines: [*lines, lines[-1]]), r":5: .*checksum"),
    (with_line(lambda lines: [*lines, b"\n"]), r":5: damaged"),
    (with_line(lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[2:]]), r":3: damaged"),
    (with_line(lambda lines: [lines[0], b"[1]\n"]), r":2: .*no JSON object"),
    (with_line(lambda lines: [lines[0], b"[" * 100_000 + b"\n"]), r":2: damaged"),
    (edit(b'"journal": 2', b'"journal": "2"'), r":1: .*no journal of version 2"),
    (edit(b'"facts": {', b'"other": {'), r":1: .*no journal of version 2"),
    (forged(id="t:b/0"), r":2: .*'t:b/0' is no answer that this task asks for"),
    (forged(n_tokens=-1), r":2: .*no generated answer"),
    (forged(n_tokens=1.5), r":2: .*no answer"),
    (forged(n_tokens=True), r":2: .*no generated answer"),
    (forged(text=None), r":2: .*no answer"),
    (forged(score=1.0), r":2: .*no generated answer"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_a_journal_that_was_changed_is_refused_with_its_line(
    tmp_path: Path, change: Callable[[bytes], bytes], said: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(change(write(path, TEXTS)))
    with pytest.raises(ResultError, match=re.escape(str(path)) + said) as raised:
        read(path)
    assert str(raised.value).endswith("; remove it to do this task anew")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": ""}, "different lengths"),
        ({"logprobs": "", "mean": "", "std": ""}, "empty"),
        ({"mean": "AAAA"}, "damaged"),
        ({"mean": "not base64!"}, "damaged"),
        ({"mean": "AAAAAAAA8H8=" * 3}, "damaged"),
        ({"logprobs": "AAAAAAAA+H8AAAAAAAD4fwAAAAAAAPh/"}, "not finite"),
        ({"text": "x"}, "damaged"),
    ],
)
def test_arrays_that_are_none_are_refused(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(forged(**changes)(write(path, LOGS)))
    with pytest.raises(ResultError, match=rf":2: .*{said}"):
        read(path, Scored)


def test_an_answer_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", TEXTS)
    with pytest.raises(ResultError, match=":2: .*no answer that this task asks for"):
        read(tmp_path / "t.jsonl", Scored)


def test_what_is_not_finite_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    made = journal(path, Scored)
    made.keep(LOGS[0])
    with pytest.raises(ModelOutputError, match="t:a/0:lower: a log-probability"):
        made.keep(scored("t:a/0:lower", -1.0, float("nan")))
    made.close()
    assert list(read(path, Scored).found) == ["t:a/0"]


def test_another_configuration_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write(path, TEXTS)
    other = journal(path, facts={"seed": 1, "batch size": 4, "task": "t"})
    with pytest.raises(ResultError) as raised:
        other.read()
    said = str(raised.value)
    assert "seed is 0 there and 1 here; batch size is absent there and 4 here" in said
    assert "--fresh" in said


def test_a_journal_of_the_version_before_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"journal": 1, "identity": {"seed": "0"}, "sum": "0123456789abcdef"}\n')
    with pytest.raises(ResultError) as raised:
        read(path)
    assert str(raised.value) == (
        f"{path} is half a task of another version of unlearnbench (journal 1, here 2), and cannot "
        "be gone on with; remove it to do this task anew, or use --fresh"
    )


def test_a_folder_in_the_way_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").mkdir()
    with pytest.raises(ResultError, match=r"t\.jsonl cannot be read"):
        read(tmp_path / "t.jsonl")


def test_removing_leaves_the_journals_of_others(tmp_path: Path) -> None:
    write(tmp_path / "partial" / "t.jsonl", TEXTS)
    write(tmp_path / "partial" / "u.jsonl", TEXTS)
    read(tmp_path / "partial" / "t.jsonl").remove()
    assert [path.name for path in (tmp_path / "partial").iterdir()] == ["u.jsonl"]
    read(tmp_path / "partial" / "u.jsonl").remove()
    assert not (tmp_path / "partial").exists()


def test_a_pipe_in_its_place_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    import os

    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes with names")
    os.mkfifo(tmp_path / "t.jsonl")
    with pytest.raises(ResultError, match=r"t\.jsonl is no regular file"):
        read(tmp_path / "t.jsonl")
