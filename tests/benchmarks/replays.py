"""Early checks of runs that are finished: the gate asks, and the stored records answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unlearnbench.recovery.claims import Anchors, Rule, Scores
from unlearnbench.recovery.compare import Comparison
from unlearnbench.recovery.draws import DrawnScores
from unlearnbench.recovery.early import Gate
from unlearnbench.recovery.judging import check, judge_rule
from unlearnbench.recovery.order import order_of
from unlearnbench.recovery.policy import Finding, Policy, exit_status
from unlearnbench.runs.entries import Entry, LoadedRun, run_key


@dataclass(frozen=True)
class Replay:
    """One checkpoint, judged with all samples and early."""

    entry: str
    whole: int
    """The exit status with all samples."""
    early: int
    asked: int
    """Samples (of a membership task texts) that the early check asked for."""
    all: int
    loads: int
    """How often a model was loaded."""
    findings: Sequence[Finding]

    @property
    def share(self) -> float:
        return self.asked / self.all


def replay(comparison: Comparison, entry: Entry, policy: Policy, seed: int = 0) -> Replay:
    """Judge ``entry`` with all samples and early, in the order of ``seed``."""
    comparison = replace(comparison, entries=[entry])
    base = comparison.retrained.full
    whole = exit_status(check(comparison, policy))
    itself = run_key(entry.full) == run_key(base)
    anchors = Anchors(comparison, policy, is_retrained=itself)
    tasks, rules = anchors.tasks(), anchors.rules()
    kinds = {task: base.task(task) for task in tasks}
    orders = {
        task: order_of(task, base.records(task), kinds[task].attack is not None, seed)
        for task in tasks
    }

    def anchor(name: Scores) -> LoadedRun:
        ends = {"target": comparison.target, "retrained": comparison.retrained}
        return ends[name.role].at(name.condition)

    def judge(rule: Rule) -> Finding:
        task = rule.task if rule.task in tasks else tasks[0]
        return judge_rule(comparison, policy, entry, (task, rule.condition), rule.kind)

    headline = {task: (found.metric, found.attack) for task, found in kinds.items()}
    gate = Gate(entry.name, policy, rules, DrawnScores(orders, anchor, headline), judge)
    loads, loaded = 0, None
    while (step := gate.next(loaded)) is not None:
        loads, loaded = loads + (step.condition != loaded), step.condition
        ids = orders[step.task].first(step.n)
        records = entry.at(step.condition).records(step.task)
        gate.add(step, [record for record in records if record.id in ids])
    found = gate.findings()
    return Replay(entry.name, whole, exit_status(found), *gate.draws.asked(rules), loads, found)
