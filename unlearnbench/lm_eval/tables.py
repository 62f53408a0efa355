"""Results of lm-eval's tasks as text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unlearnbench.errors import OptionError, one_line
from unlearnbench.results import HarnessMetric, HarnessResult, RunResult
from unlearnbench.runs.entries import Entry
from unlearnbench.runs.fingerprint import ASKED, Fingerprint, differences
from unlearnbench.util.text import fitted_table


def headline(result: HarnessResult) -> HarnessMetric:
    """The metric that tables show: the first of the task's own order."""
    return result.metrics[0]


def shown(metric: HarnessMetric) -> str:
    """``value +- stderr`` in lm-eval's own unit."""
    text = f"{metric.value:.4f}"
    return text if metric.stderr is None else f"{text} +- {metric.stderr:.4f}"


_BELOW = 0.025
"""A guessing model is so seldom below chance that a score is marked."""


def below_chance(result: HarnessResult) -> bool:
    """Whether a task's accuracy is significantly below guessing (binomial, one-sided, 2.5%): an
    answer that is avoided is an answer that is known. False where chance is not known.
    """
    accuracy = headline(result)
    if result.chance is None or accuracy.name != "acc":
        return False
    from scipy.stats import binom

    right = round(accuracy.value * result.n)
    return bool(binom.cdf(right, result.n, result.chance) < _BELOW)


def _cell(result: HarnessResult, metric: HarnessMetric) -> str:
    mark = metric is headline(result) and below_chance(result)
    return f"{shown(metric)} (below chance)" if mark else shown(metric)


def _arrow(task: str, metric: HarnessMetric) -> str:
    """What is good: of WMDP's hazards what guessing gives, not 0."""
    if task.startswith("wmdp") and metric.name.startswith("acc"):
        return "chance"
    return {True: "high", False: "low", None: "?"}[metric.higher_is_better]


def harness_table(results: Mapping[str, RunResult]) -> str:
    """A row for every metric of every task and run; ``results`` by what names the run."""
    rows = [
        [
            run.condition.name,
            task,
            result.version,
            "-" if result.num_fewshot is None else result.num_fewshot,
            result.n,
            f"{metric.name},{metric.filter} ({_arrow(task, metric)})",
            _cell(result, metric),
            where,
        ]
        for where, run in results.items()
        for task, result in (run.harness or {}).items()
        for metric in result.metrics
    ]
    head = ["condition", "lm-eval task", "version", "shots", "n", "metric", "value", "run folder"]
    return fitted_table(rows, head)


_SAME = ("version", "lm_eval", "n", "num_fewshot", "config_sha256", "documents_sha256", "subtasks")


def require_same_harness(entries: Sequence[Entry]) -> None:
    """Show that an lm-eval task that several runs hold was the same one; raise OptionError where
    they differ in version, configuration, documents or prompts, or in how the model was asked.
    """
    first: dict[str, tuple[Path, Fingerprint]] = {}
    for entry in entries:
        for run in entry.runs.values():
            for task, result in (run.result.harness or {}).items():
                asked = {name: getattr(run.result.settings, name) for name in ASKED}
                facts = {name: getattr(result, name) for name in _SAME} | asked
                here = Fingerprint.of(facts)
                path, there = first.setdefault(task, (run.path, here))
                if there != here:
                    raise OptionError(
                        f"{run.path} cannot be compared with {path}: lm-eval task "
                        f"{one_line(task)}: {differences(there, here)[0]}"
                    )


def utility_cells(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: an entry at a precision, and a column for every lm-eval task. Of a group only
    the group is shown, not the tasks that it is made of. Raises as ``require_same_harness``.
    """
    require_same_harness(entries)
    runs = [(e.name, p, r.result.harness or {}) for e in entries for p, r in e.runs.items()]
    every = {task: result for _, _, found in runs for task, result in found.items()}
    inside = {leaf for result in every.values() for leaf in result.subtasks or ()}
    columns = [task for task in sorted(every) if task not in inside]
    if not columns:
        return [], []
    marks = {t: headline(every[t]) for t in columns}
    head = [f"{one_line(t)} {one_line(m.name)} ({_arrow(t, m)})" for t, m in marks.items()]
    rows = [
        [
            *(name, precision),
            *(_cell(found[t], headline(found[t])) if t in found else "-" for t in columns),
        ]
        for name, precision, found in runs
        if found
    ]
    return ["entry", "precision", *head], rows


def utility_table(entries: Sequence[Entry]) -> str:
    """The utility columns as a table; empty where no run has an lm-eval task."""
    head, rows = utility_cells(entries)
    return fitted_table(rows, head) if head else ""
