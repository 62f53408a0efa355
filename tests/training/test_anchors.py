"""Names and their stand-ins, and which position of a translation stands for which."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import call
from tests.conftest import make_tokenizer
from tests.training.helpers import go, same, weights
from unlearnbench.errors import DataError, OptionError
from unlearnbench.methods.rows import Translation
from unlearnbench.training import anchors as module
from unlearnbench.training.anchors import find_anchors, translated
from unlearnbench.training.corpus import Encoder, TextDocument
from unlearnbench.training.job import Job
from unlearnbench.training.options import CorpusOptions

ANCHORS = {"Ada Lovelace": "Bo Ek", "Ada": "Kim", "York": "Little Hampton"}
TEXT = "In York Ada Lovelace met Ada; to York she wrote."


def file_of(tmp_path: Path, anchors: object) -> str:
    path = tmp_path / "anchors.json"
    path.write_text(anchors if isinstance(anchors, str) else json.dumps(anchors), encoding="utf-8")
    return str(path)


def made(document: TextDocument, anchors: dict[str, str], size: int = 200) -> Any:
    encoder = Encoder(make_tokenizer(), size, 300)
    examples = encoder.encode([document], "forget")
    return encoder, translated(anchors, [document], examples, encoder)


def test_every_position_stands_for_as_much_of_the_text() -> None:
    """By hand on characters: what is said up to a token, with the names replaced, is what the
    translation says up to the token that stands for it; inside a name nothing does.
    """
    encoder, (example,) = made(TextDocument(TEXT, "t/0"), ANCHORS)
    found, tokenizer = example.translation, encoder.tokenizer
    other = "In Little Hampton Bo Ek met Kim; to Little Hampton she wrote."
    assert found.ids == tuple(tokenizer(other)["input_ids"])
    ends = [end for _, end in tokenizer(TEXT, return_offsets_mapping=True)["offset_mapping"]]
    theirs = [end for _, end in tokenizer(other, return_offsets_mapping=True)["offset_mapping"]]
    inside = {*range(4, 7), *range(9, 20), *range(26, 28), *range(34, 37)}
    assert TEXT[3:7] + TEXT[8:20] + TEXT[25:28] + TEXT[33:37] == "YorkAda LovelaceAdaYork"
    for end, place in zip(ends, found.at, strict=True):
        assert (place is None) == (end in inside), TEXT[:end]
        if place is not None:
            said = TEXT[:end].replace("Ada Lovelace", "Bo Ek").replace("Ada", "Kim")
            assert other[: theirs[place]] == said.replace("York", "Little Hampton")
    again = [TEXT[:end].endswith(("Yor", "York")) and end > 30 for end in ends]
    assert [r for r, a in zip(found.repeated, again, strict=True) if a] == [True] * sum(again)
    york = [i for i, r in zip(example.ids, found.repeated, strict=True) if r]
    assert tokenizer.decode(york).strip() == "York"
    assert [tokenizer.decode([token]).strip()[0] for _, token in found.seen] == ["L", "B", "K"]
    assert [ends[start - 1] for start, _ in found.seen] == [7, 20, 28]


def test_a_name_of_the_question_comes_again_in_the_answer() -> None:
    pair = TextDocument("Who met York?", "q/0", "York and Ada")
    encoder, (example,) = made(pair, ANCHORS)
    found, begin = example.translation, example.prompt
    other = TextDocument("Who met Little Hampton?", "q/0", "Little Hampton and Kim")
    (whole,) = encoder.encode_one(other)
    assert found.ids == whole.ids
    assert found.at[begin - 1] == whole.prompt - 1
    told = encoder.tokenizer.decode([t for t, r in zip(example.ids, found.repeated) if r])  # noqa: B905
    assert told.strip() == "York"
    assert found.at[-1] == len(whole.ids) - 1
    short, (cut,) = made(pair, ANCHORS, size=len(example.ids) - 3)
    assert len(cut.ids) == len(cut.translation.at) == len(example.ids) - 3
    assert len(cut.translation.ids) <= short.max_length


def test_pieces_of_a_long_text_are_translated_each_by_itself() -> None:
    encoder, examples = made(TextDocument(TEXT, "t/0"), ANCHORS, size=12)
    assert len(examples) > 2
    told = "".join(encoder.tokenizer.decode(e.translation.ids[1:]) for e in examples)
    assert "Hampton" in told
    for example in examples:
        assert len(example.ids) == len(example.translation.at) == len(example.translation.repeated)
        assert all(p is None or p < len(example.translation.ids) for p in example.translation.at)


def test_a_text_without_a_name_is_its_own_translation() -> None:
    plain = TextDocument("it cost £5 — no one came.", "t/1")
    encoder = Encoder(make_tokenizer(), 200, 300)
    documents = [plain, TextDocument("Ada came.", "t/2")]
    examples = encoder.encode(documents, "forget")
    first, _ = translated(ANCHORS, documents, examples, encoder)
    width = len(first.ids)
    expected = Translation(first.ids, tuple(range(width)), (False,) * width, ())
    assert first.translation == expected


def test_the_rule_takes_names_of_the_forget_texts_alone(tmp_path: Path) -> None:
    """Each with a name of its kind, used once, that is no evaluation's answer."""
    ours = [TextDocument(t, "f") for t in ("We saw Judge Ann Lee and Zed. Zed met Kay.", "In Oslo")]
    theirs = [
        TextDocument("We saw Judge Bob Roe, Kay, Tim and Tim.", "r"),
        TextDocument("Who?", "r", "By Lulu, in Oslo"),
    ]
    found, record = find_anchors("names", {"forget": ours, "retain": theirs}, CorpusOptions())
    assert found == {"Judge Ann Lee": "Judge Bob Roe", "Zed": "Tim"}
    assert (record.role, record.source, record.rows) == ("anchors", "names", 2)
    known = {role: [TextDocument(t, "x")] for role, t in (("forget", "Zed"), ("retain", "Zed met"))}
    with pytest.raises(OptionError, match="no name of the forget texts is absent"):
        find_anchors("names", known, CorpusOptions())  # type: ignore[arg-type]


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
    tmp_path: Path, anchors: object, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "answers_of_tasks", lambda corpus: {"glenhaven albion": "t: r/1"})
    with pytest.raises(DataError, match=says):
        find_anchors(file_of(tmp_path, anchors), {}, CorpusOptions())


def test_forms_of_one_name_may_share_a_stand_in(tmp_path: Path) -> None:
    anchors = {"Ada Lovelace": "Kim", "Ada": "Kim"}
    assert find_anchors(file_of(tmp_path, anchors), {}, CorpusOptions())[0] == anchors


def test_names_that_no_text_has_are_an_error() -> None:
    with pytest.raises(OptionError, match="none of its names is in the forget texts"):
        made(TextDocument(TEXT, "t/0"), {"Yor": "Kim"})


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
