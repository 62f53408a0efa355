"""ROUGE-L recall as RWKU scores answers (arXiv 2406.10890): by the rules of the package ``rouge``
1.0.1, which are other than those of rouge-score.
"""

from __future__ import annotations

from collections.abc import Sequence

from unlearnbench.errors import MetricError

NAME = "rougeL_recall_sets"
HEADLINE = "rougeL_recall_sets"


def words(text: str) -> list[str]:
    """What blanks and full stops part, case and other signs kept: all that is compared.

    Example:
        >>> words("Paris, 1.5 !")
        ['Paris,', '1', '5', '!']
    """
    return [word for sentence in _sentences(text) for word in sentence]


def score_output(output: str, target: str) -> dict[str, float]:
    """``rougeL_recall_sets`` in [0, 1]: of the target's different words the share that lies in a
    longest common subsequence of one of its sentences and one of the output's.

    A word that is written once counts however often the target has it. An output without a word,
    for which RWKU writes NOANSWER and the package raises, scores 0. Raises MetricError for a target
    without a letter or digit.

    Example:
        >>> score_output("Paris, France", "Paris")
        {'rougeL_recall_sets': 0.0}
    """
    if not any(char.isalnum() for char in target):
        raise MetricError(f"target {target[:60]!r} has no letter or digit that ROUGE could match")
    wanted = _sentences(target)
    known: set[str] = set()
    for sentence in wanted:
        for said in _sentences(output):
            known |= _common(sentence, said)
    return {NAME: len(known) / len(set(words(target)))}


def _sentences(text: str) -> list[list[str]]:
    return [words for part in text.split(".") if (words := part.split())]


def _common(target: Sequence[str], output: Sequence[str]) -> set[str]:
    """The words of a longest common subsequence: of several the one that a walk back through the
    table of lengths finds which leaves a word of the output before one of the target.
    """
    lengths = [[0] * (len(output) + 1) for _ in range(len(target) + 1)]
    for i, wanted in enumerate(target):
        for j, said in enumerate(output):
            best = max(lengths[i][j + 1], lengths[i + 1][j])
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if wanted == said else best
    found, i, j = set(), len(target), len(output)
    while i and j:
        if target[i - 1] == output[j - 1]:
            found.add(target[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found
