"""Metrics: pure functions, one small file each, found by listing this folder.

A metric for generation tasks is a module with ``NAME``, ``HEADLINE`` and ``score_output``; one
for likelihood tasks has ``NAME``, ``ATTACKS``, ``score_text`` and ``summarize``. See
docs/add-a-metric.md. ``intervals`` holds what they share: estimates with their intervals.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast

from unlearnbench.errors import MetricError

if TYPE_CHECKING:
    from unlearnbench.metrics.membership import LeakSummary
    from unlearnbench.requests import Scored


class GenerationMetric(Protocol):
    """Compares one output with one target. Scores are between 0 and 1; tasks report them x 100."""

    NAME: str
    HEADLINE: str
    score_output: Callable[[str, str], dict[str, float]]


class LikelihoodMetric(Protocol):
    """Turns token log-probabilities into attack scores, and two groups of them into a summary."""

    NAME: str
    ATTACKS: tuple[str, ...]
    """What every text gets, and a task may name as its headline."""
    score_text: Callable[[Scored, str, Scored | None], dict[str, float]]
    summarize: Callable[..., LeakSummary]


def _modules() -> dict[str, ModuleType]:
    names = (m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))
    found = [import_module(f"{__name__}.{name}") for name in sorted(names)]
    return {module.NAME: module for module in found if hasattr(module, "NAME")}


def metric_names() -> tuple[str, ...]:
    """The names of every metric in this folder."""
    return tuple(sorted(_modules()))


def _find(name: str, attribute: str) -> ModuleType:
    module = _modules().get(name)
    if not hasattr(module, attribute):
        raise MetricError(f"no metric {name!r} of this kind; known: {', '.join(metric_names())}")
    return cast(ModuleType, module)


def generation_metric(name: str) -> GenerationMetric:
    """Return the metric for outputs called ``name``, or raise MetricError."""
    return cast(GenerationMetric, _find(name, "score_output"))


def likelihood_metric(name: str) -> LikelihoodMetric:
    """Return the metric for token log-probabilities called ``name``, or raise MetricError."""
    return cast(LikelihoodMetric, _find(name, "score_text"))
