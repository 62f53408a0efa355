"""An entry's records: are they the task's samples, and their scores what their texts earn?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from unlearnbench.boards.entry import BoardEntry, digest
from unlearnbench.errors import MetricError, one_line
from unlearnbench.results import GenerationRecord, SampleRecord, TaskResult
from unlearnbench.tasks.rows import TaskSamples, limited_count
from unlearnbench.tasks.spec import Sample, TaskSpec, generation_metric

_SAME = 1e-9
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def sample_problems(
    spec: TaskSpec, records: Sequence[SampleRecord], n: int, limit: int | float | None
) -> Iterator[str]:
    """What keeps ``records`` from being those of a run of ``spec``. Such must not be computed
    with: their number and their fields have no bound.
    """
    splits = spec.asked_splits
    for split in splits:
        if n != limited_count(spec.splits[split].rows, limit):
            yield f"{n} samples of {split}, the run's settings give another number"
            return
    if [record.id for record in records] != [f"{s}/{i}" for s in splits for i in range(n)]:
        yield f"the samples are not the first {n} of {', '.join(splits)} in order"
    if any(record.task != spec.task or type(record) is not spec.record_type for record in records):
        yield "a sample is another task's, or of another kind"
    names = spec.figures()
    # --ppl-lower adds one to all of a run's texts.
    figures = {frozenset(record.scores) for record in records}
    if len(figures) != 1 or figures.pop() - spec.optional_figures != names:
        yield f"the samples' figures are not {', '.join(sorted(names))}"


def score_problems(spec: TaskSpec, records: Sequence[SampleRecord]) -> Iterator[str]:
    """Answers whose stated scores are not what their texts give."""
    for record in records:
        where = one_line(record.id, 60)
        try:
            figures = spec.rescore(record)
        except MetricError as error:
            yield f"{where}: {one_line(error)}"
            continue
        for name, (stated, ours) in figures.items():
            if abs(stated - ours) > _SAME:
                yield f"{where}: {name} is {stated}, its texts give {ours}"


def digest_problems(entry: BoardEntry, spec: TaskSpec) -> Iterator[str]:
    """What hashes in place of texts still show of a task's scores, at all precisions: an answer
    that is the reference, an empty one, and two answers that are one.
    """
    if spec.record_type is not GenerationRecord:
        return
    metric = generation_metric(spec.metric)
    right = metric.score_output("a", "a")[metric.HEADLINE]
    nothing, empty = metric.score_output("", "a")[metric.HEADLINE], digest("", entry.board)
    known: dict[tuple[str, str], tuple[float, dict[str, float]]] = {}
    for part in entry.runs:
        for record in part.samples.get(spec.task, ()):
            if not isinstance(record, GenerationRecord):
                continue
            where = f"{part.run.condition.name}: {spec.task}: {one_line(record.id, 60)}"
            pair = (record.output, record.target)
            if not all(_DIGEST.fullmatch(text) for text in (record.prompt, *pair)):
                yield f"{where}: a text stands where its hash should"
            if record.output == record.target and record.score != right:
                yield f"{where}: scored {record.score:g}, and its output is the reference"
            if record.output == empty and record.score != nothing:
                yield f"{where}: scored {record.score:g}, and its output is empty"
            scores = (record.score, record.scores)
            if known.setdefault(pair, scores) != scores:
                yield f"{where}: the same answer is scored otherwise elsewhere"


def summarize_again(
    spec: TaskSpec, records: Sequence[SampleRecord], result: TaskResult, seed: int
) -> TaskResult:
    """The result that ``records`` give, PrivLeak aside, which needs the retrained model's.

    Raises:
        MetricError: they give no finite value.
    """
    samples = tuple(Sample(r.id, r.id.rsplit("/", 1)[0], "") for r in records)
    return TaskSamples(spec, {}, samples).result(records, result.records_sha256, None, seed)


def alike(stated: object, ours: object) -> bool:
    """Whether two figures, or tables of them, are the same but for the last digits."""
    if isinstance(stated, Mapping) and isinstance(ours, Mapping):
        return stated.keys() == ours.keys() and all(alike(stated[k], ours[k]) for k in ours)
    if isinstance(stated, (list, tuple)) and isinstance(ours, (list, tuple)):
        pairs = zip(stated, ours, strict=False)
        return len(stated) == len(ours) and all(alike(a, b) for a, b in pairs)
    if isinstance(stated, float) and isinstance(ours, float):
        return abs(stated - ours) <= _SAME * max(1.0, abs(ours))
    return stated == ours
