"""EL and MA: the quick way against brute force, and their ends."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest

from unlearnbench.errors import MetricError
from unlearnbench.metrics.extraction import (
    continuations,
    extraction_likelihood,
    memorization_accuracy,
    rollouts,
)

Next = Callable[[Sequence[int]], int]
END = 0


def bigram_model(seed: int, words: int = 5) -> Next:
    """A random model in double precision that looks at the last two tokens."""
    table = np.random.default_rng(seed).normal(size=(words, words, words))
    return lambda prefix: int(table[prefix[-2] if len(prefix) > 1 else 0, prefix[-1]].argmax())


def greedy(model: Next, prefix: Sequence[int], room: int, ends: Sequence[int] = ()) -> list[int]:
    told: list[int] = []
    while len(told) < room and not (told and told[-1] in ends):
        told.append(model([*prefix, *told]))
    return told


def brute_el(model: Next, ids: Sequence[int], n: int, start: int, ends: Sequence[int]) -> Fraction:
    """The paper's formula, every prefix decoded by itself, in exact fractions."""
    terms = []
    for i in range(start, len(ids) - n + 1):
        told, true = greedy(model, ids[:i], len(ids) - i, ends), list(ids[i:])
        have = Counter(tuple(told[k : k + n]) for k in range(len(told) - n + 1))
        want = {tuple(true[k : k + n]) for k in range(len(true) - n + 1)}
        hits = sum(count for gram, count in have.items() if gram in want)
        terms.append(Fraction(hits, have.total()) if have else Fraction(0))
    return sum(terms, Fraction(0)) / len(terms)


def quick(
    model: Next, ids: Sequence[int], start: int, ends: Sequence[int]
) -> tuple[list[int], dict[int, tuple[int, ...]]]:
    predicted = [model(ids[: t + 1]) for t in range(len(ids))]
    wrong = rollouts(predicted, ids, start)
    decoded = {i: greedy(model, ids[:i], len(ids) - i, ends) for i in wrong}
    return predicted, continuations(ids, decoded, start, ends)


@pytest.mark.parametrize("start", [1, 4])
@pytest.mark.parametrize("ends", [(), (END,)])
def test_the_quick_way_is_brute_force(start: int, ends: tuple[int, ...]) -> None:
    some = 0
    for seed in range(20):
        model, rng = bigram_model(seed), np.random.default_rng(seed)
        ids = [3, *(int(x) for x in rng.integers(0, 5, size=3))]
        while len(ids) < 24:  # a text that the model half knows
            ids.append(model(ids) if rng.random() < 0.7 else int(rng.integers(0, 5)))
        predicted, found = quick(model, ids, start, ends)
        for i in range(start, len(ids)):
            assert list(found[i]) == greedy(model, ids[:i], len(ids) - i, ends), (seed, i)
        hits = [model(ids[:i]) == ids[i] for i in range(start, len(ids))]
        assert memorization_accuracy(predicted, ids, start) == sum(hits) / len(hits)
        for n in (1, 3, 10):
            exact = brute_el(model, ids, n, start, ends)
            known = extraction_likelihood(ids, found, n, start)
            assert known == pytest.approx(float(exact), abs=1e-15)
            some += 0 < exact < 1
    assert some > 20


def test_a_model_that_recites_has_1_and_one_that_never_hits_0() -> None:
    ids = [1, 2, 3, 1, 4, 2, 2, 5]
    predicted = [*ids[1:], 9]
    assert rollouts(predicted, ids) == []
    found = continuations(ids, {})
    assert found[1] == tuple(ids[1:])
    assert memorization_accuracy(predicted, ids) == 1
    assert extraction_likelihood(ids, found, 3) == 1
    other = [9] * 8  # no word of the text
    wrong = rollouts(other, ids)
    assert wrong == list(range(1, 8))
    never = continuations(ids, {i: [9] * (8 - i) for i in wrong})
    assert memorization_accuracy(other, ids) == 0
    assert extraction_likelihood(ids, never, 1) == 0


def test_the_overlap_counts_repetition_and_divides_by_what_was_said() -> None:
    """The released code divides by the true rest, which differs after an early end."""
    ids = [7, 1, 2, 1, 2]
    assert extraction_likelihood(ids, {i: (1, 2, 9, 1, 2)[: 5 - i] for i in range(1, 5)}, 2) == (
        pytest.approx((1 / 3 + 1 / 2 + 1 / 1) / 3, abs=1e-15)
    )
    early = {1: (1, 2), 2: (2,), 3: (), 4: ()}  # ended: one 2-gram of the first, none of the others
    assert extraction_likelihood(ids, early, 2) == pytest.approx(1 / 3, abs=1e-15)


def test_an_answer_of_too_few_tokens_has_none() -> None:
    ids = [1, 2, 3, 4]
    assert extraction_likelihood(ids, continuations(ids, {}, 2), 3, start=2) is None
    assert extraction_likelihood(ids, continuations(ids, {}, 2), 2, start=2) == 1


def test_spans_count_alone() -> None:
    ids = [5, 1, 2, 3, 4, 1]
    predicted = [1, 9, 3, 9, 1, 0]  # hits at 1, 3, 5
    marked = [False, True, True, False, False, False]
    assert memorization_accuracy(predicted, ids, 1, marked) == 1 / 2
    assert memorization_accuracy([*ids[1:], 9], ids, 1, marked) == 1, "memorised"
    told = {1: (1, 2, 9, 9, 9), 2: (9, 9, 9, 9), 3: (9, 9, 9), 4: (9, 9), 5: (9,)}
    # 2-grams that touch the span: after 1 token 12 and 23, after 2 tokens 23; then none.
    assert extraction_likelihood(ids, told, 2, 1, marked) == (1 / 2 + 0) / 2
    everything = extraction_likelihood(ids, told, 2, 1, [True] * 6)
    assert everything == pytest.approx((1 / 4 + 0 + 0 + 0) / 4), "EL in its recall form"
    assert extraction_likelihood(ids, told, 2, 1, [False] * 6) is None


def test_what_cannot_be_counted_raises() -> None:
    with pytest.raises(MetricError, match="3 predictions of 2 tokens"):
        memorization_accuracy([1, 2, 3], [1, 2])
    with pytest.raises(MetricError, match="no token of 2 is predicted after the first 2"):
        memorization_accuracy([1, 2], [1, 2], start=2)
    with pytest.raises(MetricError, match="no token"):
        memorization_accuracy([1, 2], [1, 2], marked=[True, False])
