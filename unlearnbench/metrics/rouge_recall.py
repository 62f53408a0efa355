"""ROUGE-L recall with the Porter stemmer, as TOFU scores answers (arXiv 2401.06121)."""

from __future__ import annotations

from functools import lru_cache

from unlearnbench.metrics.rouge import stemmed
from unlearnbench.metrics.rouge import words as words

NAME = "rougeL_recall_stem"
HEADLINE = "rougeL_recall_stem"


def score_output(output: str, target: str) -> dict[str, float]:
    """Each in [0, 1], of stemmed words: ``rougeL_recall_stem`` (the headline: the share of the
    target's words that the output has in their order), ``rouge1_recall_stem`` and ``rougeL_stem``
    (F1). A recall does not fall by what is written beside the answer. Raises: as ``rouge``.

    Example:
        >>> score_output("She was born in Rome, in 1950", "born in Rome")["rougeL_recall_stem"]
        1.0
    """
    return dict(_score(output, target))


@lru_cache(maxsize=1024)
def _score(output: str, target: str) -> dict[str, float]:
    found = stemmed(output, target)
    return {
        NAME: float(found["rougeL"].recall),
        "rouge1_recall_stem": float(found["rouge1"].recall),
        "rougeL_stem": float(found["rougeL"].fmeasure),
    }
