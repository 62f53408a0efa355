"""A policy held against runs: pass, fail, or not decided. Bounds decide, not points."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearnbench.errors import OptionError, one_line
from unlearnbench.metrics.intervals import CONFIDENCE, Estimate
from unlearnbench.recovery.compare import Comparison, Standing, open_comparison
from unlearnbench.recovery.statistics import RecoveryRow, had_forgotten
from unlearnbench.results import FULL
from unlearnbench.runs.entries import Entry

Outcome = Literal["pass", "fail", "not decided"]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]


# The rules, and what each is of.
_FITS = {
    "max_recovered": "it is of forget tasks and PrivLeak at quantized precisions",
    "max_excess": "it is of tasks where low is good",
    "max_privleak": "it is of PrivLeak tasks",
    "min_utility": "it is of every task",
}


class Policy(BaseModel):
    """What a checkpoint must keep to; a rule that is absent is not checked."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    tasks: Names
    """Names or globs; each must match a task of the runs."""
    precisions: Names
    """At which every rule must hold; ``none`` is full precision."""
    max_recovered: float | None = Field(default=None, ge=0)
    """Largest recovered share, at every quantized precision."""
    max_excess: float | None = Field(default=None, ge=0)
    """Epsilon: most points above the retrained model, on tasks where low is good."""
    max_privleak: float | None = Field(default=None, ge=0)
    """Largest PrivLeak on either side of 0."""
    min_utility: float | None = Field(default=None, ge=0)
    """Least share of the full-precision target's retained knowledge."""
    confidence: float = Field(default=CONFIDENCE, ge=0.5, le=0.999)
    """Of the two-sided intervals whose bounds decide."""
    min_samples: int = Field(default=1, ge=1)
    """With fewer, nothing is decided."""

    @property
    def rules(self) -> set[str]:
        """The names of those that are there."""
        return {name for name in _FITS if getattr(self, name) is not None}

    @model_validator(mode="after")
    def _has_a_rule(self) -> Policy:
        if not self.rules:
            raise ValueError(f"no rule: no {', '.join(_FITS)}")
        return self


@dataclass(frozen=True)
class Finding:
    """One rule on one task at one precision. ``bounds`` is None where there is no interval."""

    entry: str
    task: str
    precision: str
    rule: str
    outcome: Outcome
    message: str
    bounds: tuple[float, float] | None = None

    @property
    def name(self) -> str:
        """What was checked, in one line."""
        return f"{self.entry} {self.task} at {self.precision}: {self.rule}"


def open_check(runs: Sequence[Path], target: Path, retrained: Path, policy: Policy) -> Comparison:
    """The runs, read at the policy's confidence and shown to be comparable.

    Raises:
        UnlearnbenchError: as ``open_comparison``.
    """
    return open_comparison(runs, target, retrained, confidence=policy.confidence)


def check(comparison: Comparison, policy: Policy) -> list[Finding]:
    """Every rule on every entry, task and precision.

    Raises:
        OptionError: a task pattern matches nothing, or a rule fits none of an entry's tasks and
            precisions: it would seem to hold.
        ResultError: a run that the policy needs is missing.
    """
    found = [finding for entry in comparison.entries for finding in _of(comparison, entry, policy)]
    return list(dict.fromkeys(found))  # one utility serves all tasks of a family


def _of(comparison: Comparison, entry: Entry, policy: Policy) -> list[Finding]:
    tasks = _tasks(comparison, entry, policy)
    found = [
        finding
        for task in tasks
        for precision in policy.precisions
        for finding in _check_task(_Place(comparison, policy, entry, task, precision))
    ]
    idle = sorted(policy.rules - {finding.rule.split()[0] for finding in found})
    if idle:
        where = f"{', '.join(tasks)} at {', '.join(policy.precisions)}"
        raise OptionError(
            f"the policy's {idle[0]} fits nothing of {one_line(entry.name)}, {one_line(where)}, so "
            f"it was not checked ({_FITS[idle[0]]}); add what it fits, or leave it out"
        )
    return found


def exit_status(findings: Sequence[Finding]) -> int:
    """0 all pass, 1 one fails, 2 none fails and one is not decided."""
    outcomes = {finding.outcome for finding in findings}
    return 1 if "fail" in outcomes else 2 if "not decided" in outcomes else 0


def _tasks(comparison: Comparison, entry: Entry, policy: Policy) -> list[str]:
    have = comparison.tasks(entry)
    chosen: dict[str, None] = {}
    for pattern in policy.tasks:
        matches = fnmatch.filter(have, pattern)
        if not matches:
            raise OptionError(
                f"{one_line(entry.name)} has no task {one_line(pattern)}; evaluate it first"
            )
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


@dataclass(frozen=True)
class _Place:
    comparison: Comparison
    policy: Policy
    entry: Entry
    task: str
    precision: str

    def of(self, task: str) -> _Place:
        """The same place for another task."""
        return replace(self, task=task)

    def finding(self, rule: str, outcome: Outcome, message: str, figure: Estimate) -> Finding:
        names = (self.entry.name, self.task, self.precision)
        return Finding(*names, rule, outcome, message, figure.ci)

    def judge(self, rule: str, n: int, figure: Estimate, kept: tuple[float, float]) -> Finding:
        """A figure that must lie within ``kept``, by the bounds of its interval."""
        shown = _show(figure)
        if n < self.policy.min_samples:
            few = f"{n} samples, the policy asks for {self.policy.min_samples}"
            return self.finding(rule, "not decided", few, figure)
        if figure.ci is None:
            return self.finding(rule, "not decided", f"{shown} has no interval", figure)
        low, high = figure.ci
        if kept[0] <= low and high <= kept[1]:
            return self.finding(rule, "pass", shown, figure)
        if high < kept[0] or low > kept[1]:
            return self.finding(rule, "fail", shown, figure)
        wide = f"{shown} reaches over the limit; more samples would narrow it"
        return self.finding(rule, "not decided", wide, figure)


_INF = float("inf")


def _check_task(place: _Place) -> Iterator[Finding]:
    policy = place.policy
    standing = place.comparison.standing(place.entry, place.task, place.precision)
    if standing.want == "low" and policy.max_excess is not None:
        rule = f"max_excess {policy.max_excess:g}"
        yield place.judge(rule, standing.n, standing.excess, (-_INF, policy.max_excess))
    if standing.want == "zero" and policy.max_privleak is not None:
        limit = policy.max_privleak
        rule = f"max_privleak {limit:g}"
        yield place.judge(rule, standing.n, standing.excess, (-limit, limit))
    if policy.min_utility is not None:
        yield _check_utility(place, standing, policy.min_utility)
    if policy.max_recovered is not None and standing.want != "high" and place.precision != FULL:
        yield _check_recovered(place, policy.max_recovered)


def _check_utility(place: _Place, standing: Standing, least: float) -> Finding:
    rule = f"min_utility {least:g}"
    retain = place.comparison.retain_task(place.entry, place.task)
    if standing.utility is None or retain is None:
        message = "no retain task was evaluated, so utility is not known"
        return place.finding(rule, "not decided", message, Estimate(0.0))
    n = place.entry.full.task(retain).n
    return place.of(retain).judge(rule, n, standing.utility, (least, _INF))


def _check_recovered(place: _Place, most: float) -> Finding:
    row = place.comparison.row(place.entry, place.task, place.precision)
    rule = f"max_recovered {most:g}"
    if row.recovered is not None:
        share = Estimate(row.recovered, row.recovered_ci)
        return place.judge(rule, row.n, share, (-_INF, most))
    return place.finding(rule, *_without_share(row), Estimate(0.0))


def _without_share(row: RecoveryRow) -> tuple[Outcome, str]:
    """No share: nothing was forgotten, which fails; or the target forgets too, which shows
    nothing.
    """
    if had_forgotten(row.want, row.full, row.target_full):
        scores = f"{row.target:.1f}, in full precision {row.target_full:.1f}"
        return "not decided", f"the target itself forgets at this precision: {scores}"
    return "fail", f"had not forgotten: {row.full:.1f} in full precision, target {row.target:.1f}"


def _show(figure: Estimate) -> str:
    if figure.ci is None:
        return f"{figure.value:.3g}"
    return f"{figure.value:.3g} [{figure.ci[0]:.3g}, {figure.ci[1]:.3g}]"
