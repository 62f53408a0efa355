"""A policy held against runs: pass, fail, or not decided. Bounds decide, not points."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from unlearnbench.errors import OptionError, one_line
from unlearnbench.metrics.intervals import CONFIDENCE, Bounds, Estimate
from unlearnbench.recovery.compare import Comparison, TaskStanding
from unlearnbench.recovery.controls import leaves_alone
from unlearnbench.recovery.survival import survivals
from unlearnbench.recovery.verdicts import GONE, MIN_GAP
from unlearnbench.results import FULL
from unlearnbench.runs.entries import Entry

Outcome = Literal["pass", "fail", "not decided"]
Names = Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
Share = Annotated[float, Field(ge=0)]


# The rules, and what each is of.
_FITS = {
    "max_recovered": "it is of forget tasks and PrivLeak under conditions but none",
    "max_excess": "it is of tasks where low is good",
    "max_privleak": "it is of PrivLeak tasks",
    "min_utility": "it is of every task",
    "min_survival": "it is of quantized conditions",
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
    max_recovered: Share | dict[str, Share] | None = None
    """Largest recovered share, under every condition but ``none``; or by condition, and then under
    those that are named."""
    max_excess: float | None = Field(default=None, ge=0)
    """Epsilon: most points above the retrained model, on tasks where low is good."""
    max_privleak: float | None = Field(default=None, ge=0)
    """Largest PrivLeak on either side of 0."""
    min_utility: float | None = Field(default=None, ge=0)
    """Least share of the full-precision target's retained knowledge."""
    min_survival: float | None = Field(default=None, ge=0, le=1)
    """Least share of the update that rounding leaves, at every quantized precision; read from the
    checkpoints themselves, exactly."""
    confidence: float = Field(default=CONFIDENCE, ge=0.5, le=0.999)
    """Of the two-sided intervals whose bounds decide."""
    min_samples: int = Field(default=1, ge=1)
    """With fewer, nothing is decided."""

    def most_recovered(self, precision: str) -> float | None:
        """The largest recovered share at ``precision``; None where none is stated."""
        if isinstance(self.max_recovered, dict):
            return self.max_recovered.get(precision)
        return None if precision == FULL else self.max_recovered

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
    bounds: Bounds | None = None

    @property
    def name(self) -> str:
        """What was checked, in one line."""
        return f"{self.entry} {self.task} at {self.precision}: {self.rule}"


def check(comparison: Comparison, policy: Policy) -> list[Finding]:
    """Every rule on every entry, task and precision.

    Raises:
        OptionError: a task pattern matches nothing, or a rule fits none of an entry's tasks and
            precisions, or a condition is put to none of the tasks: it would seem to hold.
        ResultError: a run that the policy needs is missing.
        CheckpointError, PrecisionError: as ``survivals``.
    """
    found: list[Finding] = []
    bounds = policy.max_recovered if isinstance(policy.max_recovered, dict) else {}
    odd = [name for name in bounds if name == FULL or name not in policy.precisions]
    if odd:
        raise OptionError(
            f"the policy's max_recovered names {one_line(odd[0], 80)}, which is not among its "
            f"precisions, or is {FULL} itself"
        )
    for entry in comparison.entries:
        tasks = _tasks(comparison, entry, policy)
        for precision in policy.precisions:
            if all(leaves_alone(entry.at(precision), task) for task in tasks):
                raise OptionError(
                    f"{one_line(precision, 80)} changes how none of {', '.join(tasks)} is asked: "
                    "nothing would be checked there; add a task that it is put to, or leave it out"
                )
        judged = [
            finding
            for task in tasks
            for precision in policy.precisions
            for finding in _Judge(comparison, policy, entry, task, precision).findings()
        ]
        judged += _survivals(comparison, policy, entry)
        idle = sorted(policy.rules - {finding.rule.split()[0] for finding in judged})
        if idle:
            where = f"{', '.join(tasks)} at {', '.join(policy.precisions)}"
            raise OptionError(
                f"the policy's {idle[0]} fits nothing of {one_line(entry.name)}, "
                f"{one_line(where)}, so it was not checked ({_FITS[idle[0]]}); add what it fits, "
                "or leave it out"
            )
        found += judged
    return list(dict.fromkeys(found))  # one utility serves all tasks of a family


def _survivals(comparison: Comparison, policy: Policy, entry: Entry) -> Iterator[Finding]:
    quantized = [p for p in policy.precisions if entry.at(p).result.condition.kind == "quantized"]
    least = policy.min_survival
    if least is None or not quantized:
        return
    for name, found in survivals(entry, comparison.target.full, quantized).items():
        outcome: Outcome = "pass" if found >= least else "fail"
        message = f"{found:.2f} of the update is left"
        yield Finding(entry.name, "weights", name, f"min_survival {least:g}", outcome, message)


def exit_status(findings: Sequence[Finding]) -> int:
    """0 all pass, 1 one fails, 2 none fails and one is not decided."""
    outcomes = {finding.outcome for finding in findings}
    return 1 if "fail" in outcomes else 2 if "not decided" in outcomes else 0


def come_back(comparison: Comparison, findings: Sequence[Finding]) -> list[tuple[Entry, list[str]]]:
    """The entries that had forgotten and know again once they are quantized, or whose update does
    not survive that, and the precisions at which a rule fails for it.
    """
    found: dict[str, dict[str, None]] = {}
    entries = {entry.name: entry for entry in comparison.entries}
    for finding in findings:
        entry, rule = entries[finding.entry], finding.rule.split()[0]
        if finding.outcome != "fail":
            continue
        comes_back = rule == "min_survival"
        if rule in ("max_recovered", "max_excess"):
            kind = entry.at(finding.precision).result.condition.kind
            row = comparison.row(entry, finding.task, finding.precision)
            comes_back = kind == "quantized" and row.had_forgotten
        if comes_back:
            found.setdefault(entry.name, {})[finding.precision] = None
    return [(entries[name], list(failed)) for name, failed in found.items()]


def _tasks(comparison: Comparison, entry: Entry, policy: Policy) -> list[str]:
    chosen: dict[str, None] = {}
    for pattern in policy.tasks:
        matches = fnmatch.filter(comparison.tasks(entry), pattern)
        if not matches:
            raise OptionError(
                f"{one_line(entry.name)} has no task {one_line(pattern)}; evaluate it first"
            )
        chosen.update(dict.fromkeys(matches))
    return list(chosen)


@dataclass(frozen=True)
class _Judge:
    """The policy's rules on one task at one precision."""

    comparison: Comparison
    policy: Policy
    entry: Entry
    task: str
    precision: str

    def findings(self) -> Iterator[Finding]:
        policy = self.policy
        found = self.comparison.standing(self.entry, self.task, self.precision)
        if leaves_alone(self.entry.at(self.precision), self.task):
            return
        if found.want == "low" and policy.max_excess is not None:
            rule = f"max_excess {policy.max_excess:g}"
            yield self._judge(rule, found.n, found.excess, (-math.inf, policy.max_excess))
        if found.want == "zero" and policy.max_privleak is not None:
            limit = policy.max_privleak
            yield self._judge(f"max_privleak {limit:g}", found.n, found.excess, (-limit, limit))
        if policy.min_utility is not None:
            yield self._utility(found, policy.min_utility)
        most = policy.most_recovered(self.precision)
        if most is not None and found.want != "high":
            yield self._recovered(most)

    def _utility(self, found: TaskStanding, least: float) -> Finding:
        rule = f"min_utility {least:g}"
        retained = self.comparison.retained(self.entry, self.task)
        if found.utility is None or retained is None:
            message = "no retain task was evaluated, so utility is not known"
            return self._finding(rule, "not decided", message)
        whole = replace(self, task=retained.name)
        return whole._judge(rule, retained.n, found.utility, (least, math.inf))

    def _recovered(self, most: float) -> Finding:
        """Without a share: nothing was forgotten, which fails where its bounds show it; or the
        target forgets too, which shows nothing.
        """
        row = self.comparison.row(self.entry, self.task, self.precision)
        rule, share = f"max_recovered {most:g}", row.estimate("recovered")
        if share is not None:
            return self._judge(rule, row.n, share, (-math.inf, most))
        if row.had_forgotten:
            known = row.target, row.target_full, row.full
            scores = "{:.1f}, in full precision {:.1f}, the checkpoint {:.1f}".format(*known)
            message = f"the target itself knows too little at this precision: {scores}"
            return self._finding(rule, "not decided", message)
        forgotten, least = row.leakage("forgotten"), MIN_GAP
        if forgotten.value >= MIN_GAP:  # and yet not far enough on the way to the retrained model
            forgotten, least = row.estimate("gone") or forgotten, GONE
        found = self._judge(rule, row.n, forgotten, (least, math.inf))
        scores = f"{row.full:.1f} in full precision, target {row.target_full:.1f}"
        return replace(found, message=f"had not forgotten: {scores}; {found.message}")

    def _judge(self, rule: str, n: int, figure: Estimate, kept: Bounds) -> Finding:
        """A figure that must lie within ``kept``, by the bounds of its interval."""
        if n < self.policy.min_samples:
            few = f"{n} samples, the policy asks for {self.policy.min_samples}"
            return self._finding(rule, "not decided", few, figure.ci)
        if figure.ci is None:
            return self._finding(rule, "not decided", f"{figure.value:.3g} has no interval")
        low, high = figure.ci
        shown = f"{figure.value:.3g} [{low:.3g}, {high:.3g}]"
        if high < kept[0] or low > kept[1]:
            return self._finding(rule, "fail", shown, figure.ci)
        if low < kept[0] or high > kept[1]:
            shown += " reaches over the limit; more samples would narrow it"
            return self._finding(rule, "not decided", shown, figure.ci)
        return self._finding(rule, "pass", shown, figure.ci)

    def _finding(
        self, rule: str, outcome: Outcome, message: str, bounds: Bounds | None = None
    ) -> Finding:
        at = (self.entry.name, self.task, self.precision)
        return Finding(*at, rule, outcome, message, bounds)
