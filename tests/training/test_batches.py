from __future__ import annotations

from collections import Counter

import pytest

from unlearnbench.errors import OptionError
from unlearnbench.methods.rows import IGNORED, Example
from unlearnbench.training.batches import as_batch, collate, make_schedule
from unlearnbench.training.options import TrainOptions


def text(n: int) -> Example:
    return Example((0, n, n), (0, n, n))


def pair(n: int) -> Example:
    return Example((0, n, n + 1), (IGNORED, IGNORED, n + 1), is_qa=True)


def test_each_epoch_shows_every_text_once_in_another_order() -> None:
    forget = [text(n) for n in range(2, 12)]
    schedule = make_schedule({"forget": forget}, TrainOptions(epochs=3, batch_size=5))
    assert schedule.steps == 6
    epochs = [[i["forget"][0] for i in schedule.items[at : at + 10]] for at in (0, 10, 20)]
    assert all(Counter(epoch) == Counter(forget) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_the_retain_set_goes_round_at_its_own_pace() -> None:
    retain = [text(n) for n in range(20, 27)]
    schedule = make_schedule(
        {"forget": [text(2), text(3)], "retain": retain}, TrainOptions(epochs=7, batch_size=2)
    )
    seen = Counter(item["retain"] for item in schedule.items)
    assert set(seen.values()) == {2}
    assert len(seen) == 7


def test_the_order_depends_on_the_seed_alone() -> None:
    forget, retain = [text(n) for n in range(2, 20)], [text(n) for n in range(30, 40)]
    first, again, other = (
        make_schedule(
            {"forget": forget, "retain": retain}, TrainOptions(epochs=2, batch_size=4, seed=seed)
        )
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_max_steps_wins_over_epochs_and_batches_are_always_full() -> None:
    forget = [text(n) for n in range(2, 5)]
    schedule = make_schedule({"forget": forget}, TrainOptions(epochs=9, max_steps=2))
    assert (schedule.steps, len(schedule)) == (2, 16)
    assert make_schedule({"forget": [text(2)]}, TrainOptions(epochs=0.1)).steps == 1


def test_packed_pairs_are_all_there_and_texts_stay_alone() -> None:
    pairs, texts = [pair(n) for n in range(2, 9)], [text(n) for n in range(20, 23)]
    schedule = make_schedule({"forget": [*pairs, *texts]}, TrainOptions(batch_size=6, pack=3))
    assert schedule.steps == 1, "7 pairs in 3 sequences, and 3 texts"
    ids = [item["forget"][0].ids for item in schedule.items]
    assert Counter(t for row in ids for t in row) == Counter(
        t for example in [*pairs, *texts] for t in example.ids
    )
    assert sorted(len(row) for row in ids) == [3, 3, 3, 3, 9, 9]


def test_packed_pairs_have_one_begin_token_as_prompts_do() -> None:
    first = Example((0, 5, 6), (IGNORED, IGNORED, 6), is_qa=True, begin=1)
    second = Example((0, 7, 8), (IGNORED, IGNORED, 8), is_qa=True, begin=1)
    schedule = make_schedule({"forget": [first, second]}, TrainOptions(batch_size=1, pack=2))
    (found,) = schedule.items[0]["forget"]
    assert found.ids in ((0, 5, 6, 7, 8), (0, 7, 8, 5, 6))
    assert found.labels[:2] == (IGNORED, IGNORED)
    assert sorted(found.labels[2:]) == sorted((found.ids[2], IGNORED, found.ids[4]))


def test_nothing_to_learn_raises() -> None:
    with pytest.raises(OptionError, match="no token to learn"):
        make_schedule({"forget": [Example((0, 1), (0, IGNORED))]}, TrainOptions())


def test_a_batch_holds_padded_rows_and_the_sums_of_its_whole_step() -> None:
    forget, retain = [pair(2), text(4)], [Example((0, 7, 8, 9), (0, 7, 8, 9))]
    schedule = make_schedule({"forget": forget, "retain": retain}, TrainOptions(batch_size=2))
    batch = as_batch(collate([schedule[0]], pad=1))
    assert (batch.rows, batch.all_rows) == ({"forget": 1, "retain": 1}, 2)
    assert batch.all_tokens == {"forget": 3, "retain": 6}
    assert batch.inputs["input_ids"].tolist()[0][3:] == [1]
    assert batch.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.labels.tolist()[0][3:] == [IGNORED]
    assert batch.inputs_of("retain")["input_ids"].tolist() == [[0, 7, 8, 9]]
