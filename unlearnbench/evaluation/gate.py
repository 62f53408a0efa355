"""``check --model``: a checkpoint evaluated and judged in one command, with all samples or, round
by round, until the outcome is decided.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from unlearnbench.conditions import find_condition
from unlearnbench.errors import OptionError, one_line
from unlearnbench.evaluation.answers import task_fingerprint
from unlearnbench.evaluation.drawn import DrawnRun
from unlearnbench.evaluation.evaluate import open_runs, plan
from unlearnbench.evaluation.options import Options
from unlearnbench.evaluation.outcome import Failures
from unlearnbench.evaluation.run import Evaluation
from unlearnbench.models.base import Model
from unlearnbench.recovery.claims import Anchors, Rule, Scores
from unlearnbench.recovery.compare import Comparison, load_one
from unlearnbench.recovery.controls import needs_control
from unlearnbench.recovery.draws import DrawnScores
from unlearnbench.recovery.early import Gate
from unlearnbench.recovery.judging import check, judge_rule, judge_weights
from unlearnbench.recovery.order import order_of
from unlearnbench.recovery.policy import (
    Finding,
    Policy,
    require_no_idle,
    require_sense,
    tasks_named,
)
from unlearnbench.results import FULL, GenerationRecord, RunResult, SampleRecord, TaskResult
from unlearnbench.runs.entries import (
    Entry,
    LoadedRun,
    require_comparable,
    require_same_condition,
    run_key,
)
from unlearnbench.runs.fingerprint import Fingerprint, differences
from unlearnbench.tasks.rows import TaskSamples
from unlearnbench.util.process import plain_errors, process_count

log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class CheckResult:
    """What was found, on which runs."""

    findings: Sequence[Finding]
    comparison: Comparison
    """Of all runs; without entries where not all samples were asked."""
    asked: tuple[int, int] | None = None
    """Of an early check: the samples that it took, and all that there are."""


@dataclass
class ModelCheck:
    """A checkpoint that is to be held against a policy. Making one checks everything that can be
    refused before a model is loaded, but for ``early`` and ``whole`` themselves.
    """

    model: str
    policy: Policy
    target: Path
    retrained: Path
    options: Options
    _comparison: Comparison = field(init=False)

    def __post_init__(self) -> None:
        if process_count() > 1:
            raise OptionError("check --model runs in one process")
        if self.options.deployed or any(":" in name for name in self.policy.precisions):
            raise OptionError(
                "check --model makes its conditions itself; evaluate what another tool deployed "
                "first (--deployed), and give check its runs"
            )
        ends = load_one(self.target, "target"), load_one(self.retrained, "retrained")
        self._comparison = Comparison([], *ends, confidence=self.policy.confidence)
        tasks = self._comparison.retrained.full.result.tasks
        self._anchors = Anchors(self._comparison, self.policy)
        self._names = self._anchors.tasks()
        require_sense(self.policy, tasks_named(self.policy, [*tasks], "--retrained"), ())
        for condition in self.policy.precisions:  # which runs are missing, before one is made
            self._comparison.base(condition)
            if self.policy.most_recovered(condition) is not None:
                ends[0].at(condition)
        if any(tasks[name].attack is not None for name in self._names):
            self._give_reference()
        conditions = [find_condition(name) for name in self.policy.precisions]
        if any(spec.needs_target for spec in conditions) and self.options.target_model is None:
            path = ends[0].full.result.checkpoint.path
            self.options = self.options.updated({"target_model": path})

    def _give_reference(self) -> None:
        if self.options.reference is None:
            self.options = self.options.updated({"reference": self._comparison.retrained.full.path})

    def whole(self) -> CheckResult:
        """Evaluate everything, and judge it.

        Raises:
            EvaluationError: a part failed; the others are finished.
            UnlearnbenchError: as ``evaluate``, ``open_comparison`` and ``check``.
        """
        with ExitStack() as locks:
            runs = self._open(locks)
            failures, results = self._evaluation.failures(len(runs)), list[RunResult | None]()
            for run, load in runs.values():
                try:
                    with plain_errors():
                        results.append(run.measure(load, failures))
                finally:
                    gc.collect()
            failures.raise_if_any(results)
            loaded = {name: run.loaded() for name, (run, _) in runs.items()}
        entry = Entry(_base_name(self._comparison, loaded[FULL]), loaded)
        comparison = replace(self._comparison, entries=[entry], only=self._names)
        return CheckResult(check(comparison, self.policy), comparison)

    def early(self) -> CheckResult:
        """Ask round by round until the outcome is decided, or all samples are used up.

        Raises:
            UnlearnbenchError: as ``whole``; every answer so far is kept.
        """
        with ExitStack() as locks:
            runs = self._open(locks)
            first = runs[FULL][0].as_asked()
            name = _base_name(self._comparison, first)
            kinds = {n: run.as_asked().result.condition.kind for n, (run, _) in runs.items()}
            quantized = [n for n in self.policy.precisions if kinds[n] == "quantized"]
            weights = (self.policy, name, first, self._comparison.target.full, quantized)
            found = judge_weights(*weights)
            alone = {
                (c, t)
                for c, (run, _) in runs.items()
                for t, task in run.tasks.items()
                if task.unchanged
            }
            named = tasks_named(self.policy, self._names, "--retrained")
            require_sense(self.policy, named, alone)
            itself = run_key(first) == run_key(self._comparison.retrained.full)
            rules = replace(self._anchors, alone=alone, is_retrained=itself).rules()
            kept = {rule.kind for rule in rules} | {finding.rule.split()[0] for finding in found}
            require_no_idle(self.policy, kept, name, self._names)
            gate = self._gate(name, rules, runs)
            if all(finding.outcome != "fail" for finding in found):
                _run(gate, runs)
        return CheckResult(
            [*found, *gate.findings()], self._comparison, gate.draws.asked(gate.rules)
        )

    def _open(self, locks: ExitStack) -> dict[str, tuple[DrawnRun, Callable[[], Model]]]:
        """The runs by condition, shown to be comparable with the target's and the retrained's."""
        evaluation = plan(self._names, self.options)
        self._evaluation: Evaluation = evaluation
        base = self._comparison.retrained.full
        self._orders = {
            name: order_of(
                name, base.records(name), base.task(name).attack is not None, self.options.seed
            )
            for name in self._names
        }
        for task in evaluation.tasks:
            _require_same_samples(task, base, _samples_of)
        conditions = list(dict.fromkeys([FULL, *self.policy.precisions]))
        make = partial(DrawnRun, orders=self._orders)
        found = open_runs(evaluation, self.model, conditions, locks, make)
        runs = {run.name: (run, load) for run, load in found}
        for task in runs[FULL][0].tasks.values():  # a chat template or a blank may be in them now
            _require_same_samples(task, base, _task_of)
        for run, _ in found:
            controlled = run.name in self.policy.precisions and needs_control(run.name)
            _require_comparable(self._comparison, run.as_asked(), self._names, controlled)
        return runs

    def _gate(
        self,
        name: str,
        rules: Sequence[Rule],
        runs: Mapping[str, tuple[DrawnRun, Callable[[], Model]]],
    ) -> Gate:
        ends = {"target": self._comparison.target, "retrained": self._comparison.retrained}

        def anchor(scores: Scores) -> LoadedRun:
            return ends[scores.role].at(scores.condition)

        def judge(rule: Rule) -> Finding:
            of = {task for _, task in rule.asked}
            task = rule.task if rule.task in of else next(iter(sorted(of)))
            loaded = {c: runs[c][0].loaded() for c in {FULL} | {c for c, _ in rule.asked}}
            entry = Entry(name, loaded)
            comparison = replace(self._comparison, entries=[entry], only=of)
            return judge_rule(comparison, self.policy, entry, (task, rule.condition), rule.kind)

        tasks = self._comparison.retrained.full.result.tasks
        headline = {n: (tasks[n].metric, tasks[n].attack) for n in self._names}
        return Gate(name, self.policy, rules, DrawnScores(self._orders, anchor, headline), judge)


def _run(gate: Gate, runs: Mapping[str, tuple[DrawnRun, Callable[[], Model]]]) -> None:
    """Ask what the gate needs, with one model in memory at a time."""
    kept: dict[str, Model] = {}

    def load(condition: str) -> Model:
        if condition not in kept:
            kept.clear()
            gc.collect()  # before the next takes its memory
            kept[condition] = runs[condition][1]()
        return kept[condition]

    try:
        while (step := gate.next(next(iter(kept), None))) is not None:
            run = runs[step.condition][0]
            with plain_errors(), Failures(1).guard(run.path, step.condition, step.task):
                records = run.draw(step.task, step.n, partial(load, step.condition))
            for each in gate.add(step, records):
                rule = each.rule
                where = f"{rule.task} at {rule.condition}: {rule.name}"
                log.info("%s: %s, %s", where, each.outcome, each.message)
    finally:
        for run, _ in runs.values():
            run.close()


def _base_name(comparison: Comparison, run: LoadedRun) -> str:
    """As ``load_entries`` calls a checkpoint."""
    return run.result.checkpoint.path.rstrip("/").rsplit("/", 1)[-1] or "model"


def _require_comparable(
    comparison: Comparison, run: LoadedRun, tasks: Sequence[str], controlled: bool
) -> None:
    """Refuse what ``open_comparison`` would refuse once all is evaluated."""
    condition = run.condition
    target, retrained = comparison.target, comparison.retrained
    require_comparable(run, retrained.full, [])
    require_comparable(target.full, retrained.full, tasks)
    if condition in target.runs:
        require_same_condition(run, target.at(condition))
        require_comparable(target.at(condition), retrained.full, tasks)
    if controlled:
        control = comparison.base(condition)
        require_comparable(control, retrained.full, tasks)
        require_same_condition(run, control)


def _samples_of(
    task: TaskSamples, found: TaskResult, records: Sequence[SampleRecord]
) -> tuple[Fingerprint, Fingerprint]:
    """Which samples: those that were measured, and those that are to be asked."""
    there = Fingerprint.of_samples("samples", [record.id for record in records])
    return there, Fingerprint.of_samples("samples", [sample.id for sample in task.samples])


def _task_of(
    task: TaskSamples, found: TaskResult, records: Sequence[SampleRecord]
) -> tuple[Fingerprint, Fingerprint]:
    """The task, its rows and its prompts."""
    texts = {r.id: r.prompt for r in records if isinstance(r, GenerationRecord)}
    asked = {s.id: s.text for s in task.samples if s.id in texts}
    there, here = (
        Fingerprint.of({f"the prompt of {name}": text for name, text in each.items()})
        for each in (texts, asked)
    )
    version = Fingerprint.of_task(found.version, found.task_sha256, found.data)
    return version | there, task_fingerprint(task) | here


def _require_same_samples(
    task: TaskSamples,
    base: LoadedRun,
    facts: Callable[..., tuple[Fingerprint, Fingerprint]],
) -> None:
    """Raise OptionError where a run measured something else than what is to be asked."""
    name = task.spec.task
    there, here = facts(task, base.task(name), base.records(name))
    if there != here:
        raise OptionError(
            f"{base.path} cannot be compared with {one_line(name)} as it would be asked here: "
            f"{differences(there, here)[0]}; give the options that it was evaluated with"
        )
