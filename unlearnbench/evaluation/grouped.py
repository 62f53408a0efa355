"""A finished run's figures by a field of its rows, as RWKU's persons: one a group, and intervals
over the groups, since a person's probes are no independent samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearnbench.errors import DataError, OptionError, ResultError, one_line
from unlearnbench.metrics.intervals import Estimate, Values, draw, finite, mean, ratio
from unlearnbench.results import LikelihoodRecord
from unlearnbench.runs.entries import LoadedRun, require_whole
from unlearnbench.runs.folder import read_run
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.rows import DataOptions, load_splits
from unlearnbench.tasks.spec import TaskSpec

_SAME = 1e-6


@dataclass(frozen=True)
class Grouped:
    """One task's figures by group; values times 100, as in ``run.json``."""

    groups: dict[str, tuple[int, Estimate]]
    """By value of the field: rows, and their mean with its interval over them."""
    pooled: Estimate
    """The mean over all rows, with its interval over the groups."""
    each: Estimate
    """The mean of the groups' means, likewise."""


def by_field(
    folder: Path, field: str, registry: Registry, options: DataOptions
) -> dict[str, Grouped]:
    """Every task's figures by a field of its rows, which are read again.

    Raises:
        OptionError: there is no run, no task whose value is a mean, or the rows are not the run's.
        DataError: the rows are not there, or one has no such field.
        ResultError: a file is damaged, the run is of a part of its samples, or a task's value is
            not the mean of its scores.
    """
    run = LoadedRun(folder, read_run(folder))
    require_whole(run)
    found = {}
    for name, task in run.result.tasks.items():
        if name in registry.files and task.auc is None:
            found[name] = _grouped(registry.of_version(name, task.version), field, run, options)
    if not found:
        raise OptionError(
            f"{folder}: no task there has a mean over rows; --by has nothing to group"
        )
    return found


def _grouped(spec: TaskSpec, field: str, run: LoadedRun, options: DataOptions) -> Grouped:
    split = load_splits(spec, options)[spec.own_split]
    stated = {part.split: part.sha256 for part in run.task(spec.task).data}
    if stated.get(split.split) != split.sha256:  # an imported run does not say which it read
        raise OptionError(f"{spec.task}: the run was made from other rows than {split.source}'s")
    scores: dict[str, list[float]] = {}
    for record in run.records(spec.task):
        where, number = f"{spec.task}: {one_line(record.id, 60)}", record.id.rpartition("/")[2]
        at = int(number) if number.isdecimal() else -1
        if isinstance(record, LikelihoodRecord) or not 0 <= at < len(split.rows):
            raise OptionError(f"{where} is no row of {split.split}")
        value = split.rows[at].get(field)
        if not isinstance(value, str) or not value:
            raise DataError(f"{where} has no text in field {one_line(field, 40)!r} (--by)")
        scores.setdefault(value, []).append(100 * record.score)
    found, value = summarize(scores, run.result.settings.seed), run.task(spec.task).value
    if value is None or abs(found.pooled.value - value) > _SAME:
        raise ResultError(
            f"{spec.task}: run.json states {value}, and the mean of its records' scores is "
            f"{found.pooled.value:g}: nothing to group by {one_line(field, 40)!r}"
        )
    return found


def summarize(scores: dict[str, list[float]], seed: int) -> Grouped:
    """Of scores from 0 to 100 by group."""
    groups = {name: (len(each), _mean(each, seed)) for name, each in sorted(scores.items())}
    sizes = finite([len(each) for each in scores.values()])
    most = float(sizes.max())
    sums = Values(finite([sum(each) / 100 for each in scores.values()]), (0.0, most))
    pooled = ratio(sums, Values(sizes, (0.0, most)), draw(len(scores), seed)).scaled(100)
    if pooled.ci:  # the ratio knows of sums and sizes apart, not that none exceeds the other
        pooled = replace(pooled, ci=(max(pooled.ci[0], 0.0), min(pooled.ci[1], 100.0)))
    return Grouped(groups, pooled, _mean([e.value for _, e in groups.values()], seed))


def _mean(values: Sequence[float], seed: int) -> Estimate:
    return mean(Values(finite(values), (0.0, 100.0)), draw(len(values), seed))


def grouped_json(found: dict[str, Grouped]) -> dict[str, Any]:
    """As ``--json`` writes it."""
    return {
        task: {
            "groups": {name: {"n": n, **_facts(e)} for name, (n, e) in each.groups.items()},
            "pooled": _facts(each.pooled),
            "mean_of_groups": _facts(each.each),
        }
        for task, each in found.items()
    }


def _facts(estimate: Estimate) -> dict[str, object]:
    return {"value": estimate.value} | ({"ci": list(estimate.ci)} if estimate.ci else {})


def grouped_rows(found: dict[str, Grouped]) -> list[list[str]]:
    """A table's rows: the task, whose figure, its value."""
    rows = []
    for task, each in found.items():
        count = len(each.groups)
        of = f"over {count} group{'s' if count > 1 else ''}"
        rows += [[task, f"pooled, {of}", _said(each.pooled)]]
        rows += [[task, f"mean of groups, {of}", _said(each.each)]]
        rows += [
            [task, f"  {one_line(g, 60)}, n {n}", _said(e)] for g, (n, e) in each.groups.items()
        ]
    return rows


def _said(estimate: Estimate) -> str:
    ends = f" [{estimate.ci[0]:.1f}, {estimate.ci[1]:.1f}]" if estimate.ci else ""
    return f"{estimate.value:.1f}{ends}"
