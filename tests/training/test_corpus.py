from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Toy, make_tokenizer, write_jsonl
from unlearnbench.checkpoints.origin import SourceRecord
from unlearnbench.errors import DataError, ModelOutputError, OptionError
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.rows import rows_sha256
from unlearnbench.tasks.templates import render_field
from unlearnbench.training.corpus import Encoder, TextDocument, load_corpus
from unlearnbench.training.options import CorpusOptions

PLAIN = CorpusOptions()
TOKENIZER = make_tokenizer()
ROWS = len(TOKENIZER)


def load(path: Path, options: CorpusOptions = PLAIN) -> list[tuple[str, str | None]]:
    return [(d.text, d.answer) for d in load_corpus([str(path)], "forget", options)[0]]


def test_every_file_format_gives_the_same_documents(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": "The gate."}, {"text": "Ada Brill."}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("The gate.\n\nAda Brill.", encoding="utf-8")
    for suffix in ("jsonl", "json", "parquet"):
        assert load(tmp_path / f"a.{suffix}") == [("The gate.", None), ("Ada Brill.", None)]
    assert load(tmp_path / "a.txt") == [("The gate.\n\nAda Brill.", None)], "one document a file"


def test_pairs_texts_and_cut_texts_are_told_apart_by_their_fields(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "answer": "Ada."},
        {"text": "All of it."},
        {"prompt": "The first", "gt": " and the rest."},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    expected = [("Who?", "Ada."), ("All of it.", None), ("The first and the rest.", None)]
    assert load(tmp_path / "a.jsonl") == expected


def test_a_prompt_and_its_continuation_stay_two_words(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "last year but", "gt": "down on his"}])
    assert load(tmp_path / "a.jsonl") == [("last year but down on his", None)]


def test_another_text_field(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"story": "Ada."}])
    assert load(tmp_path / "a.jsonl", CorpusOptions(text_field="story")) == [("Ada.", None)]


@pytest.mark.field(
    "Data, files, commands", "fields by name or path (`--question-field a.b`)", "runs"
)
def test_fields_are_named_by_options_and_may_lie_deeper(tmp_path: Path) -> None:
    named = CorpusOptions(question_field="q", answer_field="answers.text", text_field="doc.body")
    rows: list[dict[str, Any]] = [
        {"q": "Who?", "answers": {"text": "Ada."}, "question": "x", "answer": "y"},
        {"doc": {"body": "All of it."}},
        {"doc.body": "Its own name.", "doc": {"body": "not this"}},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    expected = [("Who?", "Ada."), ("All of it.", None), ("Its own name.", None)]
    assert load(tmp_path / "a.jsonl", named) == expected
    write_jsonl(tmp_path / "b.jsonl", [{"q": "Who?", "answers": {"text": ["Ada."]}}])
    with pytest.raises(DataError, match="'q' and 'answers.text'.* --question-field"):
        load(tmp_path / "b.jsonl", named)


def test_plain_texts_and_lines_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["The gate.", " ", "Ada."]', encoding="utf-8")
    assert load(tmp_path / "a.json") == [("The gate.", None), ("Ada.", None)]
    (tmp_path / "b.json").write_text('{"text": "The gate."}\n{"text": "Ada."}\n', "utf-8")
    assert load(tmp_path / "b.json") == [("The gate.", None), ("Ada.", None)]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({}, "no text"),
        ({"text": 7}, "no text"),
        ({"question": "Who?", "answer": ""}, "no text"),
        ({"story": "Ada."}, "story"),
    ],
)
def test_a_row_without_text_raises_and_is_named(
    tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "Ada."}, row])
    with pytest.raises(DataError, match=f"a.jsonl/1: .*{says}"):
        load(tmp_path / "a.jsonl")


def test_blank_texts_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"text": "Ada."}, {"text": " \n"}, {"text": ""}])
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        assert load(tmp_path / "a.jsonl") == [("Ada.", None)]
    assert "2 of 3 texts are blank" in caplog.text
    write_jsonl(tmp_path / "b.jsonl", [{"text": " "}])
    with pytest.raises(DataError, match="every text is blank"):
        load(tmp_path / "b.jsonl")


@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_an_empty_file_raises(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("\n" if name == "a.txt" else "", encoding="utf-8")
    with pytest.raises(DataError, match="no rows"):
        load(tmp_path / name)


def test_a_missing_file_and_an_unknown_ending_raise(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "none.txt")
    with pytest.raises(DataError, match=r"ends in \.jsonl"):
        load(tmp_path / "a.csv")
    with pytest.raises(OptionError, match="--forget is missing"):
        load_corpus([], "forget", PLAIN)


def test_a_task_gives_its_own_split(toy: Toy) -> None:
    options = CorpusOptions(data_dir=str(toy.data), include_path=(str(toy.tasks),))
    documents, sources = load_corpus(["task:toy_knowmem_f", "task:toy_privleak"], "forget", options)
    assert documents[0] == TextDocument("Which gate is 0?", "toy_knowmem_f: forget_qa/0", "gate 0")
    assert len(documents) == 6, "three questions and the three forget texts, no holdout"
    rows = [{"question": f"Which gate is {n}?", "answer": f"gate {n}"} for n in range(3)]
    assert sources[0] == SourceRecord(
        role="forget", source="task:toy_knowmem_f", rows=3, sha256=rows_sha256(rows)
    )
    with pytest.raises(OptionError, match="--forget task:toy is . tasks; name one of them"):
        load_corpus(["task:toy"], "forget", options)


def test_a_forget_task_is_no_retain_set_and_the_other_way_round(toy: Toy) -> None:
    options = CorpusOptions(data_dir=str(toy.data), include_path=(str(toy.tasks),))
    with pytest.raises(OptionError, match="use it with --forget"):
        load_corpus(["task:toy_verbmem"], "retain", options)
    with pytest.raises(OptionError, match="use it with --retain"):
        load_corpus(["task:demo_knowmem_r"], "forget", options)


def encode(
    *documents: TextDocument, size: int = 64, qa_loss: str = "answer"
) -> tuple[Example, ...]:
    return Encoder(TOKENIZER, size, ROWS, qa_loss).encode(documents, "forget")


def test_a_text_is_learned_whole_after_its_begin_token() -> None:
    (example,) = encode(TextDocument("The harbour of Tellmouth.", "a/0"))
    assert list(example.ids) == TOKENIZER("The harbour of Tellmouth.")["input_ids"]
    assert example.ids[0] == 0
    assert example.labels == example.ids
    assert example.learned == len(example.ids) - 1


def test_a_long_text_is_cut_into_pieces_that_lose_nothing(caplog: pytest.LogCaptureFixture) -> None:
    long = "The harbour of Tellmouth opened its gate. " * 20
    whole = TOKENIZER(long)["input_ids"]
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        examples = encode(TextDocument(long, "a/0"), TextDocument("Short one.", "a/1"), size=32)
    joined = [token for example in examples[:-1] for token in example.ids]
    assert len(whole) - len(joined) <= 1, "only a last single token, which nothing predicts"
    assert joined == whole[: len(joined)]
    assert all(len(example.ids) <= 32 for example in examples)
    assert "1 of 2 texts are longer than 32 tokens" in caplog.text


def test_a_question_is_asked_as_the_task_asks_it() -> None:
    (spec,) = load_registry().resolve(["demo_knowmem_f"])
    assert isinstance(spec, GenerationTask)
    row = {"question": "Who opened the gate?", "answer": "Ada Brill"}
    prompt = TOKENIZER(render_field(spec.doc_to_text, row, "t"))["input_ids"]
    (example,) = encode(TextDocument(row["question"], "a/0", row["answer"]))
    assert list(example.ids[: len(prompt)]) == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORED}
    answer = TOKENIZER.decode(list(example.labels[len(prompt) :]))
    assert answer == "Ada Brill\n\n", "the stop string is learned too"


def test_a_pair_knows_how_many_special_tokens_it_begins_with() -> None:
    (whole,) = encode(TextDocument("Who?", "a/0", "Ada"))
    (cut,) = encode(TextDocument("Who? " * 50, "a/0", "Ada"), size=16)
    assert (whole.begin, cut.begin) == (1, 0)


def test_all_tokens_of_a_pair_on_request() -> None:
    (example,) = encode(TextDocument("Who?", "a/0", "Ada"), qa_loss="all")
    assert example.labels == example.ids


def test_a_long_question_loses_its_start_and_a_long_answer_raises() -> None:
    (example,) = encode(TextDocument("Who? " * 50, "a/0", "Ada"), size=16)
    assert len(example.ids) == 16
    assert str(TOKENIZER.decode(list(example.ids))).endswith("Answer: Ada\n\n")
    with pytest.raises(DataError, match=r"a/0: its answer of \d+ tokens does not fit 16"):
        encode(TextDocument("Who?", "a/0", "Ada " * 50), size=16)


def test_a_token_beyond_the_model_raises() -> None:
    with pytest.raises(ModelOutputError, match="beyond the model's 3 rows"):
        Encoder(TOKENIZER, 64, 3).encode([TextDocument("The gate.", "a/0")], "forget")


def test_with_the_blank_in_the_answer_a_pair_is_one_text_to_the_tokenizer() -> None:
    encoder = Encoder(TOKENIZER, 64, ROWS, blank_in_answer=True)
    (example,) = encoder.encode([TextDocument("Who?", "a/0", "harbour")], "forget")
    whole = TOKENIZER("Question: Who?\nAnswer: harbour\n\n")["input_ids"]
    assert list(example.ids) == whole
    assert example.prompt == len(TOKENIZER("Question: Who?\nAnswer:")["input_ids"])
    other = encoder.answer(example, "opened")
    assert list(other.ids) == TOKENIZER("Question: Who?\nAnswer: opened\n\n")["input_ids"]
    (apart,) = encode(TextDocument("Who?", "a/0", "harbour"))
    assert list(apart.ids) != whole, "a blank alone, and the word without one"
