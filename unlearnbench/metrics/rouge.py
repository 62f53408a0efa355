"""ROUGE of an output against its target, by the ``rouge-score`` package (Lin 2004)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING

from unlearnbench.errors import MetricError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from rouge_score.scoring import Score

NAME = "rougeL"
HEADLINE = "rougeL"
Tokenize = Callable[[str], list[str]]


@lru_cache(maxsize=3)
def _scorer(stem: bool, tokenize: Tokenize | None) -> RougeScorer:
    from rouge_score import rouge_scorer

    other = SimpleNamespace(tokenize=tokenize) if tokenize else None
    return rouge_scorer.RougeScorer(["rougeL", "rouge1"], use_stemmer=stem, tokenizer=other)


def words(text: str) -> list[str]:
    """The runs of a-z and 0-9 in the lower-cased text: rouge-score keeps nothing else."""
    from rouge_score.tokenize import tokenize

    return list(tokenize(text, None))


def score_output(output: str, target: str) -> dict[str, float]:
    """Each in [0, 1]: ``rougeL`` (F1, no stemming: the headline), ``rougeL_recall``, ``rouge1``
    (F1) and ``rougeL_stem`` (F1 with the Porter stemmer).

    Raises MetricError where the target has no letter or digit, so that every output would score 0,
    or where more than a fifth of them is lost (`é` is): a date alone would decide the score of a
    Russian sentence. Counted over the composed form (NFC), so that both spellings of é are equal.

    Example:
        >>> score_output("the cat sat", "the cat")["rougeL_recall"]
        1.0
    """
    return dict(_score(output, target))


# Precisions of one model often answer alike, and a board scores every answer again.
@lru_cache(maxsize=1024)
def _score(output: str, target: str) -> dict[str, float]:
    found = float(stemmed(output, target)["rougeL"].fmeasure)
    return {**figures(output, target), "rougeL_stem": found}


def stemmed(output: str, target: str) -> Mapping[str, Score]:
    """``rougeL`` and ``rouge1`` of rouge-score with its stemmer. Raises: as ``score_output``."""
    seen = [c for c in unicodedata.normalize("NFC", target).lower() if c.isalnum()]
    lost = sum(not c.isascii() for c in seen)
    if not seen:
        raise MetricError(f"target {target[:60]!r} has no letter or digit that ROUGE could match")
    if 5 * lost > len(seen):
        raise MetricError(
            f"target {target[:60]!r} loses {lost} of its {len(seen)} letters and digits to rougeL, "
            "which keeps a-z and 0-9; use `metric: rougeL_unicode` in the task"
        )
    found: Mapping[str, Score] = _scorer(True, None).score(target, output)
    return found


def figures(output: str, target: str, tokenize: Tokenize | None = None) -> dict[str, float]:
    """F1 and recall of ROUGE-L and F1 of ROUGE-1, over ``tokenize``'s words or the plain ones."""
    scores = _scorer(False, tokenize).score(target, output)
    return {
        "rougeL": float(scores["rougeL"].fmeasure),
        "rougeL_recall": float(scores["rougeL"].recall),
        "rouge1": float(scores["rouge1"].fmeasure),
    }
