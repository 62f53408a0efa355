"""ROUGE of an output against its target, by the ``rouge-score`` package (Lin 2004)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from unlearnbench.errors import MetricError

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

NAME = "rougeL"
HEADLINE = "rougeL"


@lru_cache(maxsize=2)
def _scorer(stem: bool) -> RougeScorer:
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL", "rouge1"], use_stemmer=stem)


def score_output(output: str, target: str) -> dict[str, float]:
    """Each in [0, 1]: ``rougeL`` (F1, no stemming: the headline), ``rougeL_recall``, ``rouge1``
    (F1) and ``rougeL_stem`` (F1 with the Porter stemmer). Raises MetricError where the target has
    no word to match, so that every output would score 0.

    Example:
        >>> score_output("the cat sat", "the cat")["rougeL_recall"]
        1.0
    """
    return dict(_score(output, target))


# Precisions of one model often answer alike, and a board scores every answer again.
@lru_cache(maxsize=1024)
def _score(output: str, target: str) -> tuple[tuple[str, float], ...]:
    scores = _scorer(False).score(target, output)
    # rouge-score keeps [a-z0-9] after lower-casing and nothing else.
    if not any(c.isascii() and c.isalnum() for c in target.lower()):
        raise MetricError(f"target {target[:60]!r} has no letter or digit that ROUGE could match")
    return (
        ("rougeL", float(scores["rougeL"].fmeasure)),
        ("rougeL_recall", float(scores["rougeL"].recall)),
        ("rouge1", float(scores["rouge1"].fmeasure)),
        ("rougeL_stem", float(_scorer(True).score(target, output)["rougeL"].fmeasure)),
    )
