from __future__ import annotations

import pytest
from nltk.stem.porter import PorterStemmer

from unlearnbench.metrics.rouge import words
from unlearnbench.metrics.rouge_recall import score_output

TARGET = "The author was writing novels about shipping in Santiago"
OUTPUTS = [TARGET, "She writes a novel on ships in Santiago, the author did", "asked", ""]


def stems(text: str) -> list[str]:
    """Words of more than three letters are stemmed."""
    stem = PorterStemmer().stem
    return [stem(word) if len(word) > 3 else word for word in words(text)]


def longest(a: list[str], b: list[str]) -> int:
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, one in enumerate(a):
        for j, other in enumerate(b):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if one == other else best
    return table[-1][-1]


@pytest.mark.parametrize("output", OUTPUTS)
def test_against_a_table_of_common_subsequences(output: str) -> None:
    ours, theirs = stems(output), stems(TARGET)
    common = longest(ours, theirs)
    found = score_output(output, TARGET)
    assert found["rougeL_recall_stem"] == pytest.approx(common / len(theirs))
    assert found["rougeL_stem"] == pytest.approx(2 * common / (len(ours) + len(theirs)))
    seen = sum(min(ours.count(word), theirs.count(word)) for word in set(theirs))
    assert found["rouge1_recall_stem"] == pytest.approx(seen / len(theirs))
