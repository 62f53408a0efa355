"""Flu: how varied a text is, by the entropy of its n-grams; a text that repeats itself is low."""

from __future__ import annotations

import math
import re
from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nltk.tokenize import NLTKWordTokenizer

# n, and its weight: 2/3 and 4/3, over the two of them.
_WEIGHTS = ((2, 1 / 3), (3, 2 / 3))


@lru_cache(maxsize=1)
def _tokenizer() -> NLTKWordTokenizer:
    from nltk.tokenize import NLTKWordTokenizer

    return NLTKWordTokenizer()


def ngram_entropy(text: str) -> float:
    """Weighted entropy of a text's bigrams and trigrams, in bits; 0 or more, higher is more varied.

    H = 1/2 (2/3 H_2 + 4/3 H_3),  H_n = -sum_g f(g) log2 f(g)

    over the text's distinct n-grams g of words, f(g) the share of its n-grams that are g. The
    entropy of n-grams is from Zhang et al. (arXiv 1809.05972); the weighted mean of n = 2 and 3 is
    GE of ROME (Meng et al., arXiv 2202.05262) with the weights of its released code, which RWKU
    (arXiv 2406.10890) takes for Flu, and arXiv 2410.16454 from there.
    A text with no n-gram of some n has H_n = 0: it says nothing, and nothing varies in it.

    Words are NLTK's Penn Treebank tokens. ``nltk.word_tokenize`` splits sentences first, with a
    model that has to be fetched; here a sentence ends at ``.``, ``!`` or ``?`` before a blank.

    Example:
        >>> round(ngram_entropy("one two three four"), 6)  # three bigrams, two trigrams
        1.194988
    """
    words = [
        word
        for sentence in re.split(r"(?<=[.!?])\s+", text)
        for word in _tokenizer().tokenize(sentence)
    ]
    return sum(weight * _entropy(words, n) for n, weight in _WEIGHTS)


def _entropy(words: list[str], n: int) -> float:
    counts = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    total = sum(counts.values())
    return -sum(c / total * math.log2(c / total) for c in counts.values()) if counts else 0.0
