"""Which position of a text with stand-ins for its names stands for which."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import make_tokenizer
from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import Translation
from unlearnbench.training.corpus import Encoder, TextDocument
from unlearnbench.training.translation import translated

ANCHORS = {"Ada Lovelace": "Bo Ek", "Ada": "Kim", "York": "Little Hampton"}
TEXT = "In York Ada Lovelace met Ada; to York she wrote."


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
    assert "Li" in told
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


def test_names_that_no_text_has_are_an_error() -> None:
    with pytest.raises(OptionError, match="none of its names is in the forget texts"):
        made(TextDocument(TEXT, "t/0"), {"Yor": "Kim"})
