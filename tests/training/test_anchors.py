"""Names and their stand-ins, and which position of a translation stands for which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.training.helpers import go, same, weights
from unlearnbench.errors import DataError, OptionError
from unlearnbench.methods.rows import Translation
from unlearnbench.training import anchors as module
from unlearnbench.training.anchors import find_anchors
from unlearnbench.training.corpus import TextDocument
from unlearnbench.training.job import Job
from unlearnbench.training.options import CorpusOptions


def file_of(tmp_path: Path, anchors: object) -> str:
    path = tmp_path / "anchors.json"
    path.write_text(anchors if isinstance(anchors, str) else json.dumps(anchors), encoding="utf-8")
    return str(path)


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"glenhaven albion": "t: r/1", "una": "t: r/2"}
    monkeypatch.setattr(module, "answers_of_tasks", lambda corpus: known)


def test_the_rule_takes_names_of_the_forget_texts_alone() -> None:
    """Each with a name of its kind, used once, that is no evaluation's answer."""
    ours = [TextDocument(t, "f") for t in ("We saw Judge Ann Lee and Zed. Zed met Kay.", "In Oslo")]
    theirs = [
        TextDocument("We saw Judge Bob Roe, Kay, Tim, Tim, Una, Una and Una.", "r"),
        TextDocument("Who?", "r", "By Lulu, in Oslo"),
    ]
    found, record = find_anchors("names", {"forget": ours, "retain": theirs}, CorpusOptions())
    assert found == {"Judge Ann Lee": "Judge Bob Roe", "Zed": "Tim"}
    assert (record.role, record.source, record.rows) == ("anchors", "names", 2)
    known = {role: [TextDocument(t, "x")] for role, t in (("forget", "Zed"), ("retain", "Zed met"))}
    with pytest.raises(OptionError, match="no name of the forget texts is absent"):
        find_anchors("names", known, CorpusOptions())  # type: ignore[arg-type]


def test_months_are_no_names() -> None:
    """Names beside numbers, though a name may once follow one."""
    ours = [TextDocument("Zed came on May 3, 1999 and the 4th of June. In 1990 Zed met Zed.", "f")]
    theirs = [TextDocument("It was 3 March, 4 March, the 5th of March, said March and Tim.", "r")]
    known = {"forget": ours, "retain": theirs}
    found, _ = find_anchors("names", known, CorpusOptions())  # type: ignore[arg-type]
    assert found == {"Zed": "Tim"}


@pytest.mark.parametrize(
    ("anchors", "says"),
    [
        ("{", "is no valid JSON"),
        ({}, "anchors are {.*none of them blank"),
        ({"Ada": " "}, "none of them blank"),
        ({"Ada": 3}, "none of them blank"),
        ('{"Ada": "Kim", " Ada": "Tim"}', "two stand-ins for 'Ada'; keep one"),
        ({"Ada": "Kim", "Bob": "kim"}, "'Ada' and 'Bob' are not one name, and both become 'kim'"),
        ({"Ada": "Kim", "Bob": "Ada Roe"}, "stand-in 'Ada Roe' of 'Bob' holds the anchor 'Ada'"),
        ({"Ada": "Ada"}, "holds the anchor 'Ada'"),
        ({"Ada": "Glenhaven Albion"}, "an evaluation's answer is no stand-in: 'Glenhaven Albion'"),
    ],
)
def test_a_dictionary_that_contradicts_itself_is_refused(
    tmp_path: Path, anchors: object, says: str
) -> None:
    with pytest.raises(DataError, match=says):
        find_anchors(file_of(tmp_path, anchors), {}, CorpusOptions())


def test_forms_of_one_name_may_share_a_stand_in(tmp_path: Path) -> None:
    anchors = {"Ada Lovelace": "Kim", "Ada": "Kim"}
    assert find_anchors(file_of(tmp_path, anchors), {}, CorpusOptions())[0] == anchors


def test_one_line_where_it_cannot_be(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = file_of(tmp_path, {"a": "Kim", "b": "Kim"})
    for method, anchors, says in (
        ("ga", given, "ga replaces no names; leave --anchors out"),
        ("whp_ft", "names", "--anchors names compares with retain texts; give --retain"),
        ("whp_ft", given, "'a' and 'b' are not one name, and both become 'Kim'"),
    ):
        assert call(*quick, "--method", method, "--anchors", anchors) == 2
        said = capsys.readouterr().err
        assert says in said
        assert len(said.strip().splitlines()) == 1


def test_without_a_name_replaced_it_is_the_method_to_the_bit(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Translations that are the texts themselves, through all that anchors go through."""

    def same_text(anchors: Any, documents: Any, examples: Any, encoder: Any) -> Any:
        every = [(e, len(e.ids)) for e in examples]
        own = [Translation(e.ids, tuple(range(n)), (False,) * n, ()) for e, n in every]
        return tuple(replace(e, translation=t) for (e, _), t in zip(every, own, strict=True))

    go(job, tmp_path / "plain", "whp_ft")
    monkeypatch.setattr(module, "translated", same_text)
    given = replace(job, anchors=file_of(tmp_path, {"Zed": "Kim"}))
    go(given, tmp_path / "same", "whp_ft")
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "same"))
    monkeypatch.undo()
    given = replace(job, anchors=file_of(tmp_path, {"Ada Brill": "Kim Doe"}))
    training = go(given, tmp_path / "other", "whp_ft")
    assert not same(weights(tmp_path / "plain"), weights(tmp_path / "other"))
    assert [part.role for part in training.data] == ["forget", "anchors"]
    told = json.loads((tmp_path / "other/anchors.json").read_bytes())
    assert told == {"Ada Brill": "Kim Doe"}
