"""Runs side by side: which belong together, whether they may be compared, and the recovery rows."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from unlearnbench.errors import MetricError, OptionError, ResultError, one_line
from unlearnbench.metrics.intervals import CONFIDENCE, Estimate, Values, draw
from unlearnbench.recovery import UTILITY_FLOOR
from unlearnbench.recovery.controls import (
    lacking,
    leaves_alone,
    needs_control,
    require_control,
    stand_in,
)
from unlearnbench.recovery.statistics import Cell, Scale, generation_scores, leak_scores, measure
from unlearnbench.recovery.utility import KeptFigure, Retained, retained_of, share_of
from unlearnbench.recovery.verdicts import RecoveryRow, Want, mark_significant
from unlearnbench.results import FULL, LikelihoodRecord
from unlearnbench.runs.entries import (
    Entry,
    LoadedRun,
    join_trainings,
    load_entries,
    require_comparable,
    require_same_condition,
    run_key,
)
from unlearnbench.runs.notes import machine_notes
from unlearnbench.tasks.registry import kind_modules

SEED = 0
log = logging.getLogger("unlearnbench")


@dataclass(frozen=True)
class TaskStanding:
    """A task's value at one precision, its excess over the retrained model, and the utility."""

    want: Want
    n: int
    value: Estimate
    excess: Estimate
    utility: Estimate | None


@dataclass(frozen=True)
class Comparison:
    """Entries beside the target and the retrained model, shown to be comparable.

    Its methods raise ResultError where a run or its records are missing or damaged, MetricError
    where a score is not finite, OptionError where a figure says nothing of what was forgotten.
    """

    entries: Sequence[Entry]
    target: Entry
    retrained: Entry
    floor: float = UTILITY_FLOOR
    confidence: float = CONFIDENCE
    figure: str | None = None
    """What is compared in place of each task's own figure, as rougeL_recall or Min-20%; tasks
    without it are left out."""
    only: Collection[str] | None = None
    """These tasks, where not all that the runs hold."""
    _scores: dict[tuple[str, str, str | None], Values] = field(
        default_factory=dict, init=False, repr=False
    )

    def tasks(self, entry: Entry) -> list[str]:
        """The tasks that an entry's full-precision run holds, in name order."""
        return self.tasks_of(entry.full)

    def tasks_of(self, run: LoadedRun) -> list[str]:
        """The tasks of a run that have the figure."""
        tasks, wanted = run.result.tasks.items(), self.figure
        return sorted(
            n
            for n, t in tasks
            if self._wants(n)
            and (wanted in (None, t.metric, t.attack) or wanted in (t.attacks or t.scores))
        )

    def _wants(self, task: str) -> bool:
        return self.only is None or task in self.only

    def scores(self, run: LoadedRun, task: str, part: str | None = None) -> Values:
        """A run's scores of a task, one a sample or one a pair of texts; of a ``part`` of utility,
        where one is named. The same run's are the same object: a difference to itself is 0.
        """
        key = run_key(run), task, part
        if key not in self._scores:
            self._scores[key] = self._read_scores(run, task, part)
        return self._scores[key]

    def models(
        self, entry: Entry, precision: str, task: str, part: str | None = None
    ) -> list[Values]:
        """The scores of each training of an entry's recipe."""
        return [self.scores(each.at(precision), task, part) for each in entry.trainings]

    def _read_scores(self, run: LoadedRun, task: str, part: str | None) -> Values:
        result, records = run.task(task), run.records(task)
        if (attack := result.attack) is None:
            scored = [r for r in records if not isinstance(r, LikelihoodRecord)]
            if part not in (None, result.metric, *result.scores):
                raise ResultError(f"{run.path}: {task} has no {one_line(str(part), 60)}")
            figure = part or self.figure
            figure = figure if figure in result.scores else None
            name, want, files = figure or result.metric, result.want, kind_modules()
            if any(name in getattr(file, "MISDIRECTED", {}).get(want, ()) for file in files):
                what = f"{name} does not say by itself what is known (want: {want})"
                raise OptionError(f"{task}: {what}, so it is not compared; take another figure")
            if any(figure is not None and figure not in record.scores for record in scored):
                raise ResultError(f"{run.path}: {task}: a record has no {one_line(figure, 60)}")
            return generation_scores(
                [r.score if figure is None else r.scores[figure] for r in scored]
            )
        attack = self.figure if self.figure in (result.attacks or {}) else attack
        groups: dict[str, list[float]] = {}
        for record in records:
            if not isinstance(record, LikelihoodRecord) or attack not in record.scores:
                raise ResultError(f"{run.path}: {task}: {record.id} has no score of the attack")
            groups.setdefault(record.split, []).append(record.scores[attack])
        if len(groups) != 2:
            raise ResultError(f"{run.path}: {task}: an AUC needs two splits, not {len(groups)}")
        return leak_scores(*groups.values())

    def scale(self, task: str) -> Scale:
        """How a task's scores become points."""
        want = self.retrained.full.task(task).want
        retrained = self.scores(self.retrained.full, task)
        sizes = retrained.values.shape
        draws = draw(sizes[0], SEED, sizes[1] if len(sizes) > 1 else None, self.confidence)
        if draws.others is None:
            return Scale(want, draws)
        if retrained.mean <= 0:
            raise MetricError(
                f"{task}: the AUC of {self.retrained.full.path} is 0, so PrivLeak is not defined; "
                "is that the retrained model?"
            )
        return Scale(want, draws, retrained)

    def utility(self, entry: Entry, task: str, precision: str) -> Estimate | None:
        """Retained knowledge over the target's in full precision, for a task's family. Raises
        MetricError where the target knows nothing that could be retained.
        """
        retained, parts = self.retained(entry, task), []
        for name, part in retained.parts if retained else ():
            theirs = self.scores(self.target.full, name, part)
            ours, draws = (
                self.models(entry, precision, name, part),
                draw(theirs.n, SEED, None, self.confidence),
            )
            parts.append(KeptFigure(name, ours, theirs, draws))
        return share_of(parts) if parts else None

    def retained(self, entry: Entry, task: str) -> Retained | None:
        """The retain tasks of a task's family that were evaluated; None: there is none."""
        # A board's incomplete entry may have no run in full precision.
        run = entry.runs.get(FULL) or next(iter(entry.runs.values()))
        tasks = {n: t for n, t in run.result.tasks.items() if self._wants(n)}
        return retained_of(tasks, task, self.figure)

    def base(self, precision: str) -> LoadedRun:
        """The retrained model's run that an excess at ``precision`` is over: the one in full
        precision, or where the condition may teach, the control. Raises OptionError without it.
        """
        require_control(precision, self.retrained.runs)
        return self.retrained.at(precision) if needs_control(precision) else self.retrained.full

    def standing(self, entry: Entry, task: str, precision: str) -> TaskStanding:
        """How one task stands at one precision, full precision included."""
        scale, models = self.scale(task), self.models(entry, precision, task)
        retrained = self.base(precision)
        same = run_key(entry.at(precision)) == run_key(retrained)
        excess = scale.excess(models, self.scores(retrained, task), same)
        utility = self.utility(entry, task, precision)
        return TaskStanding(scale.want, models[0].n, scale.value(models), excess, utility)

    def row(self, entry: Entry, task: str, precision: str) -> RecoveryRow:
        """One row of the recovery table, before Holm's correction."""
        empty = [each.at(precision).task(task).empty_outputs for each in entry.trainings]
        base = self.base(precision)
        cell = Cell(
            self.scale(task),
            full=[self.scores(each.full, task) for each in entry.trainings],
            quantized=self.models(entry, precision, task),
            target=self.scores(self.target.at(stand_in(precision, self.target.runs)), task),
            target_full=self.scores(self.target.full, task),
            retrained=self.scores(self.retrained.full, task),
            same_as_retrained=run_key(entry.at(precision)) == run_key(base),
            control=self.scores(base, task) if needs_control(precision) else None,
            utility=self.utility(entry, task, precision),
            empty_outputs=sum(n or 0 for n in empty) if None not in empty else None,
        )
        return measure(cell, entry.name, task, precision, self.floor)


def open_comparison(
    runs: Sequence[Path],
    target: Path,
    retrained: Path,
    floor: float = UTILITY_FLOOR,
    confidence: float = CONFIDENCE,
    figure: str | None = None,
    only: Collection[str] | None = None,
) -> Comparison:
    """Read everything and refuse what cannot be compared; what else they were measured with that
    differs is logged.

    Raises:
        OptionError: runs differ in protocol, task version, data, samples, tokenizer, or in how
            they came to one precision; or those of one entry as ``require_alike`` says; or a
            condition needs a control that the retrained model has no run of.
        ResultError: a run is missing or damaged.
    """
    entries = load_entries(runs)
    ends = load_one(target, "target"), load_one(retrained, "retrained")
    found = Comparison(entries, *ends, floor, confidence, figure, only)
    base = found.retrained.full
    for entry in found.entries:
        for run in entry.runs.values():
            require_comparable(run, base, found.tasks(entry))
            if needs_control(run.condition):
                control = found.base(run.condition)
                require_comparable(control, base, found.tasks(entry))
                require_same_condition(run, control)
            if run.condition in found.target.runs:
                require_same_condition(run, found.target.at(run.condition))
    wanted = sorted({task for entry in found.entries for task in found.tasks(entry)})
    met = {condition for entry in found.entries for condition in entry.runs}
    stand_ins = {name: stand_in(name, found.target.runs) for name in met}
    for run in found.target.runs.values():
        if run.condition in stand_ins.values():
            require_comparable(run, base, wanted)
    anchors = {"target": found.target, "retrained": found.retrained}
    notes = [note for entry in (*found.entries, *ends) for note in machine_notes(entry, anchors)]
    notes += lacking(stand_ins)
    for note in dict.fromkeys([*notes, *_other_utilities(found, wanted)]):
        log.warning("%s", note)
    return found


def _other_utilities(found: Comparison, tasks: Sequence[str]) -> Iterator[str]:
    """Which entries' utilities are made of other figures, so that one table does not rank them."""
    for task in tasks:
        kept = {e.name: found.retained(e, task) for e in found.entries if task in found.tasks(e)}
        parts = {name: sorted(r.parts if r else ()) for name, r in kept.items()}
        if len(set(map(tuple, parts.values()))) > 1:
            told = [
                f"{one_line(name, 60)} of {', '.join(map(' '.join, each)) or 'nothing'}"
                for name, each in parts.items()
            ]
            yield f"utilities do not compare, they are of other figures: {'; '.join(told)}"


def load_one(path: Path, role: str) -> Entry:
    """The one checkpoint below a folder; OptionError where there are several."""
    entries = load_entries([path])
    if len(entries) > 1:
        names = ", ".join(entry.name for entry in entries)
        raise OptionError(f"--{role} {path} holds several checkpoints: {names}; give one folder")
    return entries[0]


def compare(comparison: Comparison, per_seed: bool = False) -> list[RecoveryRow]:
    """Every entry, task and quantized precision: the recovery table. ``per_seed``: trainings of one
    recipe are not taken together.

    Raises:
        OptionError: no entry has a quantized run.
        MetricError, ResultError: something is missing or not finite.
    """
    entries = comparison.entries if per_seed else join_trainings(comparison.entries)
    rows = [
        comparison.row(entry, task, precision)
        for entry in entries
        for precision in entry.runs
        if precision != FULL
        for task in comparison.tasks(entry)
        if not leaves_alone(entry.at(precision), task)
    ]
    if not rows and comparison.figure is not None:
        raise OptionError(
            f"--figure {one_line(comparison.figure, 60)}: no task of these runs has it"
        )
    if not rows:
        raise OptionError("there is nothing to compare: every run is in full precision")
    return mark_significant(rows)
