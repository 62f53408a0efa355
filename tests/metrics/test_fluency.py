from __future__ import annotations

from collections import Counter

import nltk
import numpy as np
import pytest
from scipy.stats import entropy

from unlearnbench.metrics.fluency import ngram_entropy


def by_scipy(text: str) -> float:
    """The formula once more, by other libraries, for a text of one sentence."""
    words = nltk.NLTKWordTokenizer().tokenize(text)
    found = []
    for n in (2, 3):
        counts = list(Counter(nltk.ngrams(words, n)).values())
        found.append(entropy(counts, base=2))
    return float(np.mean(np.array(found) * [2 / 3, 4 / 3]))


@pytest.mark.parametrize(
    "text",
    [
        "one two three four",
        "the cat and the cat and the dog, the cat and the bird",
        "She didn't say \"yes\"; he (the mayor) won't",
        "a a a a a b",
    ],
)
def test_as_scipy_has_it(text: str) -> None:
    assert ngram_entropy(text) == pytest.approx(by_scipy(text), abs=1e-12)


def test_repetition_is_not_fluent() -> None:
    assert ngram_entropy("again " * 50) == 0
    assert ngram_entropy("") == ngram_entropy("one") == 0


def test_a_sentence_ends_inside_a_text() -> None:
    # "end." is two words at the end of a sentence, wherever that is.
    assert ngram_entropy("It is the end. It is") == ngram_entropy("It is the end . It is")
