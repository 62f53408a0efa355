"""A policy held against runs: pass, fail, or not decided. Bounds decide, not points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from unlearnbench.metrics.intervals import Bounds, Estimate
from unlearnbench.recovery.compare import Comparison, TaskStanding
from unlearnbench.recovery.controls import leaves_alone
from unlearnbench.recovery.policy import (
    FITS,
    Finding,
    Outcome,
    Policy,
    require_no_idle,
    require_sense,
    tasks_named,
)
from unlearnbench.recovery.survival import survivals
from unlearnbench.recovery.verdicts import GONE, MIN_GAP
from unlearnbench.runs.entries import Entry, LoadedRun


def check(comparison: Comparison, policy: Policy) -> list[Finding]:
    """Every rule on every entry, task and precision.

    Raises:
        OptionError: a task pattern matches nothing, or a rule fits none of an entry's tasks and
            precisions, or a condition is put to none of the tasks: it would seem to hold.
        ResultError: a run that the policy needs is missing.
        CheckpointError, PrecisionError: as ``survivals``.
    """
    found: list[Finding] = []
    for entry in comparison.entries:
        tasks = tasks_named(policy, comparison.tasks(entry), entry.name)
        alone = {(p, t) for p in policy.precisions for t in tasks if leaves_alone(entry.at(p), t)}
        require_sense(policy, tasks, alone)
        judged = [
            finding
            for task in tasks
            for precision in policy.precisions
            for finding in _Judge(comparison, policy, entry, task, precision).findings()
        ]
        quantized = [
            p for p in policy.precisions if entry.at(p).result.condition.kind == "quantized"
        ]
        judged += judge_weights(policy, entry.name, entry.full, comparison.target.full, quantized)
        require_no_idle(policy, {finding.rule.split()[0] for finding in judged}, entry.name, tasks)
        found += judged
    return list(dict.fromkeys(found))  # one utility serves all tasks of a family


def judge_weights(
    policy: Policy, name: str, run: LoadedRun, target: LoadedRun, quantized: Sequence[str]
) -> list[Finding]:
    """The rule on the weights themselves, of a checkpoint called ``name``. Raises: as
    ``survivals``.
    """
    least, judged = policy.min_survival, list[Finding]()
    if least is None or not quantized:
        return judged
    for precision, found in survivals(run, target, quantized).items():
        outcome: Outcome = "pass" if found >= least else "fail"
        message = f"{found:.2f} of the update is left"
        rule = f"min_survival {least:g}"
        judged.append(Finding(name, "weights", precision, rule, outcome, message))
    return judged


def judge_rule(
    comparison: Comparison, policy: Policy, entry: Entry, at: tuple[str, str], kind: str
) -> Finding:
    """One rule of the policy, on the task and under the condition ``at``."""
    every: dict[str, object] = dict.fromkeys(FITS)
    alone = policy.model_copy(update={**every, kind: getattr(policy, kind)})
    return next(_Judge(comparison, alone, entry, *at).findings())


def come_back(comparison: Comparison, findings: Sequence[Finding]) -> list[tuple[Entry, list[str]]]:
    """The entries that had forgotten and know again once they are quantized, or whose update does
    not survive that, and the precisions at which a rule fails for it.
    """
    found: dict[str, dict[str, None]] = {}
    entries = {entry.name: entry for entry in comparison.entries}
    for finding in findings:
        if finding.outcome != "fail" or finding.entry not in entries:
            continue
        entry, rule = entries[finding.entry], finding.rule.split()[0]
        comes_back = rule == "min_survival"
        if rule in ("max_recovered", "max_excess"):
            kind = entry.at(finding.precision).result.condition.kind
            row = comparison.row(entry, finding.task, finding.precision)
            comes_back = kind == "quantized" and row.had_forgotten
        if comes_back:
            found.setdefault(entry.name, {})[finding.precision] = None
    return [(entries[name], list(failed)) for name, failed in found.items()]


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
            return self._finding(rule, "not decided", few, figure.ci, n)
        if figure.ci is None:
            nothing = f"{figure.value:.3g} has no interval"
            return self._finding(rule, "not decided", nothing, None, n)
        low, high = figure.ci
        shown = f"{figure.value:.3g} [{low:.3g}, {high:.3g}]"
        if high < kept[0] or low > kept[1]:
            return self._finding(rule, "fail", shown, figure.ci, n)
        if low < kept[0] or high > kept[1]:
            shown += " reaches over the limit; more samples would narrow it"
            return self._finding(rule, "not decided", shown, figure.ci, n)
        return self._finding(rule, "pass", shown, figure.ci, n)

    def _finding(
        self,
        rule: str,
        outcome: Outcome,
        message: str,
        bounds: Bounds | None = None,
        n: int | None = None,
    ) -> Finding:
        at = (self.entry.name, self.task, self.precision)
        return Finding(*at, rule, outcome, message, bounds, n)
