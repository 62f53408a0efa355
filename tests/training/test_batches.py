from __future__ import annotations

import logging
from collections import Counter

import pytest

from tests.conftest import make_tokenizer
from unlearnbench.errors import DataError, ModelOutputError, OptionError
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.tasks.kinds.generate import GenerationTask
from unlearnbench.tasks.registry import load_registry
from unlearnbench.tasks.templates import render_field
from unlearnbench.training.batches import Encoder, Length, as_batch, collate, make_schedule
from unlearnbench.training.corpus import Corpus, Document

TOKENIZER = make_tokenizer()
ROWS = len(TOKENIZER)


def encode(*documents: Document, size: int = 64, qa_loss: str = "answer") -> tuple[Example, ...]:
    return Encoder(TOKENIZER, size, ROWS, qa_loss).encode(Corpus(documents, ()), "forget")


def text(n: int) -> Example:
    return Example((0, n, n), (0, n, n))


def pair(n: int) -> Example:
    return Example((0, n, n + 1), (IGNORED, IGNORED, n + 1), is_qa=True)


def test_a_text_is_learned_whole_after_its_begin_token() -> None:
    (example,) = encode(Document("The harbour of Tellmouth.", "a/0"))
    assert list(example.ids) == TOKENIZER("The harbour of Tellmouth.")["input_ids"]
    assert example.ids[0] == 0
    assert example.labels == example.ids
    assert example.learned == len(example.ids) - 1


def test_a_long_text_is_cut_into_pieces_that_lose_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    long = "The harbour of Tellmouth opened its gate. " * 20
    whole = TOKENIZER(long)["input_ids"]
    with caplog.at_level(logging.WARNING, "unlearnbench"):
        examples = encode(Document(long, "a/0"), Document("Short one.", "a/1"), size=32)
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
    (example,) = encode(Document(row["question"], "a/0", row["answer"]))
    assert list(example.ids[: len(prompt)]) == prompt
    assert set(example.labels[: len(prompt)]) == {IGNORED}
    answer = TOKENIZER.decode(list(example.labels[len(prompt) :]))
    assert answer == "Ada Brill\n\n", "the stop string is learned too"


def test_a_pair_knows_how_many_special_tokens_it_begins_with() -> None:
    (whole,) = encode(Document("Who?", "a/0", "Ada"))
    (cut,) = encode(Document("Who? " * 50, "a/0", "Ada"), size=16)
    assert (whole.begin, cut.begin) == (1, 0)


def test_all_tokens_of_a_pair_on_request() -> None:
    (example,) = encode(Document("Who?", "a/0", "Ada"), qa_loss="all")
    assert example.labels == example.ids


def test_a_long_question_loses_its_start_and_a_long_answer_raises() -> None:
    (example,) = encode(Document("Who? " * 50, "a/0", "Ada"), size=16)
    assert len(example.ids) == 16
    assert str(TOKENIZER.decode(list(example.ids))).endswith("Answer: Ada\n\n")
    with pytest.raises(DataError, match=r"a/0: its answer of \d+ tokens does not fit 16"):
        encode(Document("Who?", "a/0", "Ada " * 50), size=16)


def test_a_token_beyond_the_model_raises() -> None:
    with pytest.raises(ModelOutputError, match="beyond the model's 3 rows"):
        Encoder(TOKENIZER, 64, 3).encode(Corpus((Document("The gate.", "a/0"),), ()), "forget")


def test_each_epoch_shows_every_text_once_in_another_order() -> None:
    forget = [text(n) for n in range(2, 12)]
    schedule = make_schedule({"forget": forget}, Length(3, None, 5), seed=0)
    assert schedule.steps == 6
    epochs = [[i.rows["forget"][0] for i in schedule.items[at : at + 10]] for at in (0, 10, 20)]
    assert all(Counter(epoch) == Counter(forget) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_retain_set_goes_round_at_its_own_pace() -> None:
    retain = [text(n) for n in range(20, 27)]
    schedule = make_schedule(
        {"forget": [text(2), text(3)], "retain": retain}, Length(7, None, 2), seed=0
    )
    seen = Counter(item.rows["retain"] for item in schedule.items)
    assert set(seen.values()) == {2}
    assert len(seen) == 7


def test_the_order_depends_on_the_seed_alone() -> None:
    forget, retain = [text(n) for n in range(2, 20)], [text(n) for n in range(30, 40)]
    length = Length(2, None, 4)
    first = make_schedule({"forget": forget, "retain": retain}, length, seed=1)
    assert first == make_schedule({"forget": forget, "retain": retain}, length, seed=1)
    assert first != make_schedule({"forget": forget, "retain": retain}, length, seed=2)


def test_max_steps_wins_over_epochs_and_batches_are_always_full() -> None:
    schedule = make_schedule({"forget": [text(n) for n in range(2, 5)]}, Length(9, 2, 8), seed=0)
    assert (schedule.steps, len(schedule)) == (2, 16)
    assert make_schedule({"forget": [text(2)]}, Length(0.1, None, 8), seed=0).steps == 1


def test_packed_pairs_are_all_there_and_texts_stay_alone() -> None:
    pairs, texts = [pair(n) for n in range(2, 9)], [text(n) for n in range(20, 23)]
    schedule = make_schedule({"forget": [*pairs, *texts]}, Length(1, None, 6), seed=0, pack=3)
    assert schedule.steps == 1, "7 pairs in 3 sequences, and 3 texts"
    ids = [item.rows["forget"][0].ids for item in schedule.items]
    assert Counter(t for row in ids for t in row) == Counter(
        t for example in [*pairs, *texts] for t in example.ids
    )
    assert sorted(len(row) for row in ids) == [3, 3, 3, 3, 9, 9]


def test_packed_pairs_have_one_begin_token_as_prompts_do() -> None:
    first = Example((0, 5, 6), (IGNORED, IGNORED, 6), is_qa=True, begin=1)
    second = Example((0, 7, 8), (IGNORED, IGNORED, 8), is_qa=True, begin=1)
    schedule = make_schedule({"forget": [first, second]}, Length(1, None, 1), seed=0, pack=2)
    (found,) = schedule.items[0].rows["forget"]
    assert found.ids in ((0, 5, 6, 7, 8), (0, 7, 8, 5, 6))
    assert found.labels[:2] == (IGNORED, IGNORED)
    assert sorted(found.labels[2:]) == sorted((found.ids[2], IGNORED, found.ids[4]))


def test_nothing_to_learn_raises() -> None:
    with pytest.raises(OptionError, match="no token to learn"):
        make_schedule({"forget": [Example((0, 1), (0, IGNORED))]}, Length(1, None, 1), seed=0)


def test_a_batch_holds_padded_rows_and_the_sums_of_its_whole_step() -> None:
    forget, retain = [pair(2), text(4)], [Example((0, 7, 8, 9), (0, 7, 8, 9))]
    schedule = make_schedule({"forget": forget, "retain": retain}, Length(1, None, 2), seed=0)
    batch = as_batch(collate([schedule[0]], pad=1))
    assert (batch.rows, batch.all_rows) == ({"forget": 1, "retain": 1}, 2)
    assert batch.all_tokens == {"forget": 3, "retain": 6}
    assert batch.inputs["input_ids"].tolist()[0][3:] == [1]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist()[0][3:] == [IGNORED]
    assert batch.inputs_of("retain")["input_ids"].tolist() == [[0, 7, 8, 9]]
