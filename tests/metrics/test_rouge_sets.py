from __future__ import annotations

from itertools import combinations, product

import pytest

from unlearnbench.metrics.rouge_sets import score_output


@pytest.mark.parametrize(
    ("output", "target", "recall"),
    [  # computed with the package; BENCHMARKS of RWKU's scorer
        ("Stephen King.", "Stephen King", 1),
        ("stephen king", "Stephen King", 0),
        ("Paris, France", "Paris", 0),
        ("the the the cat", "the cat the dog", 1 / 3),
        (".", "Paris", 0),  # where the package raises
        ("", "Paris", 0),
        ("King wrote it. In 1977.", "In 1977", 1),
        ("1977 In", "In 1977", 0.5),
    ],
)
def test_worked_pairs(output: str, target: str, recall: float) -> None:
    assert score_output(output, target)["rougeL_recall_sets"] == pytest.approx(recall)


def longest(a: tuple[str, ...], b: tuple[str, ...]) -> set[frozenset[str]]:
    """The word sets of all longest common subsequences, by trying every one."""
    for size in range(min(len(a), len(b)), 0, -1):
        both = set(combinations(a, size)) & set(combinations(b, size))
        if both:
            return {frozenset(each) for each in both}
    return {frozenset()}


def test_one_of_the_longest_common_subsequences_is_taken() -> None:
    texts = [t for n in range(1, 5) for t in product("ab c".replace(" ", ""), repeat=n)]
    for target in texts[::7]:
        for output in texts[::5]:
            found = score_output(" ".join(output), " ".join(target))["rougeL_recall_sets"]
            can = {len(each) / len(set(target)) for each in longest(target, output)}
            assert any(found == pytest.approx(value) for value in can)
