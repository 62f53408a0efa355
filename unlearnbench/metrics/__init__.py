"""Metrics: pure functions, one file each, found by listing this folder (``tasks.spec``).

See docs/add-a-metric.md. ``intervals`` holds what they share: estimates with their intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from unlearnbench.metrics.membership import LeakSummary
    from unlearnbench.requests import Scored


class GenerationMetric(Protocol):
    """Compares one output with one target. Scores are between 0 and 1; tasks report them x 100."""

    NAME: str
    HEADLINE: str
    score_output: Callable[[str, str], dict[str, float]]
    """Scores of (output, target). Raises MetricError for a target that it cannot score, whatever
    the output: tasks try it with an empty one before a model is loaded."""
    words: Callable[[str], list[str]]
    """What it compares of a text; a stranger's record may hold only so many."""


class LikelihoodMetric(Protocol):
    """Turns token log-probabilities into attack scores, and two groups of them into a summary."""

    NAME: str
    ATTACKS: Mapping[str, int]
    """What a text gets that has so many scored tokens, and a task may name as its headline."""
    score_text: Callable[[Scored, str, Scored | None], dict[str, float]]
    summarize: Callable[..., LeakSummary]
