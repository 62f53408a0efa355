"""ROUGE for every script: the ``rouge-score`` package's, over words that Unicode tells apart."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from unlearnbench.errors import MetricError
from unlearnbench.metrics.rouge import figures

NAME = "rougeL_unicode"
HEADLINE = "rougeL_unicode"
# How Unicode's names begin in scripts that put no space between words.
_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")
# Soft hyphens, joiners, marks of direction and variation: two spellings of one word may differ in
# them. The zero-width space, which does part words, is not among them.
_INVISIBLE = re.compile(
    "[\u00ad\u200c-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\U000e0100-\U000e01ef]"
)
_WORD = re.compile("sm*|w[wm]*")


@lru_cache(maxsize=8192)
def _kind(char: str) -> str:
    """``w`` for a part of a word, ``s`` for a word of its own, ``m`` for a mark, else a blank."""
    category = unicodedata.category(char)
    if category[0] not in "LN":
        return "m" if category in ("Mn", "Mc") else " "
    alone = category != "Nd" and unicodedata.name(char, "").startswith(_UNSPACED)
    return "s" if alone else "w"


def words(text: str) -> list[str]:
    """Runs of letters, digits and their combining marks, in NFKC and without case. In scripts that
    put no space between words (Han, Hiragana, Katakana, Thai, Lao, Khmer, Burmese) every letter
    is a word, with its marks; their digits form numbers.

    Example:
        >>> words("Straße 12, 東京")
        ['strasse', '12', '東', '京']
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = _INVISIBLE.sub("", text)
    kinds = "".join(map(_kind, text))
    return [text[found.start() : found.end()] for found in _WORD.finditer(kinds)]


def score_output(output: str, target: str) -> dict[str, float]:
    """Each in [0, 1]: ``rougeL_unicode`` (F1: the headline), ``rougeL_recall`` and ``rouge1`` (F1),
    equal to those of ``rougeL`` for ASCII texts. Raises MetricError where the target has no word.

    Example:
        >>> score_output("в 1945 году", "в 1945")["rougeL_recall"]
        1.0
    """
    return dict(_score(output, target))


@lru_cache(maxsize=1024)
def _score(output: str, target: str) -> dict[str, float]:
    if not words(target):
        raise MetricError(f"target {target[:60]!r} has no letter or digit that ROUGE could match")
    found = figures(output, target, words)
    return {HEADLINE: found.pop("rougeL"), **found}
