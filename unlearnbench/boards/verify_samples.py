"""A task's samples in an entry: are they those of a run of it, and are their scores earned."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from unlearnbench.boards.columns import is_short, shorten
from unlearnbench.boards.entry import BoardEntry, EntryRun, digest
from unlearnbench.boards.verify_anchors import SAME
from unlearnbench.errors import MetricError, one_line
from unlearnbench.recovery.utility import retained_figures
from unlearnbench.results import (
    AnswerRecord,
    GenerationRecord,
    LikelihoodRecord,
    SampleRecord,
    Settings,
)
from unlearnbench.tasks.held import held_rows, holds_back
from unlearnbench.tasks.rows import limited_count
from unlearnbench.tasks.spec import TaskSpec, generation_metric

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sample_problems(spec: TaskSpec, part: EntryRun, compact: bool) -> Iterator[str]:
    """What keeps a task's records from being those of a run of ``spec``. Such must not be computed
    with: their number and their fields have no bound.
    """
    records, n = part.samples[spec.task], part.run.tasks[spec.task].n
    splits = spec.asked_splits
    asked = {split: asked_rows(spec, split, part.run.settings) for split in splits}
    ids = [record.id for record in records]
    if getattr(spec, "skip_empty", False):
        # Which rows are empty is not known here; an entry with others than the target is refused.
        kept = {*ids}
        asked = {s: [i for i in rows if f"{s}/{i}" in kept] for s, rows in asked.items()}
    if n != len(asked[spec.own_split]):  # of which alone rows are held back
        yield f"{n} samples of {spec.own_split}, the run's settings give another number"
        return
    if ids != [f"{s}/{i}" for s in splits for i in asked[s]]:
        yield f"the samples are not the first {n} of {', '.join(splits)} in order"
    if any(record.task != spec.task or type(record) is not spec.record_type for record in records):
        yield "a sample is another task's, or of another kind"
    names, optional = spec.figures(), spec.optional_figures
    if compact:
        stated = retained_figures(part.run.tasks[spec.task])
        names = {spec.headline} if spec.record_type is LikelihoodRecord else set(stated)
        optional = frozenset()
    # --ppl-lower adds one to all of a run's texts.
    figures = {frozenset(record.scores) for record in records}
    if len(figures) != 1 or figures.pop() - optional != names:
        yield f"the samples' figures are not {', '.join(sorted(names)) or 'left out'}"


def asked_rows(spec: TaskSpec, split: str, settings: Settings) -> list[int]:
    """The rows of a split that a run with such settings asks."""
    rows, held = spec.splits[split].rows, settings.held_back
    holds = held is not None and holds_back(spec) and split == spec.own_split
    away = held_rows(rows, held, settings.seed) if held is not None and holds else frozenset()
    return [row for row in range(limited_count(rows, settings.limit)) if row not in away]


def rescored(
    spec: TaskSpec, records: Sequence[SampleRecord], compact: bool
) -> tuple[list[str], Sequence[SampleRecord]]:
    """Answers whose stated scores are not what their texts give, or their facts; and the records,
    compact ones with every figure that these give.
    """
    what = "facts" if spec.record_type is AnswerRecord else "texts"
    problems, whole = list[str](), list[SampleRecord]()
    for record in records:
        where = one_line(record.id, 60)
        try:
            figures = spec.rescore(record)
        except MetricError as error:
            problems.append(f"{where}: {one_line(error)}")
            figures = {}
        left_out = {n for n, (stated, _) in figures.items() if compact and stated == math.inf}
        for name, (stated, ours) in figures.items():
            if name not in left_out and abs(stated - ours) > SAME:
                problems.append(f"{where}: {name} is {stated}, its {what} give {ours}")
        if compact and spec.headline in figures:
            known = left_out | record.scores.keys()
            further = {n: ours for n, (_, ours) in figures.items() if n in known}
            update = {"score": figures[spec.headline][1], "scores": further}
            record = record.model_copy(update=update)
        whole.append(record)
    return problems, whole if compact else records


def digest_problems(entry: BoardEntry, spec: TaskSpec) -> Iterator[str]:
    """Texts in place of hashes, and what hashes still show of a task's scores, at all precisions:
    an answer that is the reference, an empty one, and two answers that are one.
    """
    is_hash = is_short if entry.is_compact else _DIGEST.fullmatch
    for part in entry.runs:
        for record in part.samples.get(spec.task, ()):
            if record.with_texts(lambda t: t if is_hash(t) else f"{t}?") != record:
                where = f"{part.run.condition.name}: {spec.task}: {one_line(record.id, 60)}"
                yield f"{where}: a text stands where its hash should"
    if spec.record_type is not GenerationRecord:
        return
    metric = generation_metric(spec.metric)
    right = metric.score_output("a", "a")[metric.HEADLINE]
    nothing, empty = metric.score_output("", "a")[metric.HEADLINE], digest("", entry.board)
    if entry.is_compact:
        empty = shorten(empty)
    known: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}
    for part in entry.runs:
        for record in part.samples.get(spec.task, ()):
            if not isinstance(record, GenerationRecord):
                continue
            where = f"{part.run.condition.name}: {spec.task}: {one_line(record.id, 60)}"
            pair = (record.output, record.target)
            if record.output == record.target and record.score != right:
                yield f"{where}: scored {record.score:g}, and its output is the reference"
            if record.output == empty and record.score != nothing:
                yield f"{where}: scored {record.score:g}, and its output is empty"
            scores = (record.score, record.scores)
            if known.setdefault(pair, scores) != scores:
                yield f"{where}: the same answer is scored otherwise elsewhere"
