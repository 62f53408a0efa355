"""Everything about an entry that can be recomputed, recomputed. Nothing in it is believed."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unlearnbench.boards.definition import Board
from unlearnbench.boards.entry import BoardEntry, EntryRun, entry_json, read_entry
from unlearnbench.errors import ResultError, UnlearnbenchError, one_line
from unlearnbench.harness.table import require_same_harness
from unlearnbench.metrics import generation_metric
from unlearnbench.metrics.membership import privleak
from unlearnbench.plan import Plan, Sample, limited_count
from unlearnbench.recovery import FULL
from unlearnbench.results import GenerationRecord, SampleRecord, TaskResult
from unlearnbench.runset import LoadedRun, require_comparable, require_same_precision
from unlearnbench.scoring import summarize_task
from unlearnbench.tasks import GenerationTask, Registry, TaskSpec

__all__ = ["Verdict", "verify_board", "verify_entry"]

SAME = 1e-9


@dataclass
class Verdict:
    """What is wrong with an entry, and what could not be recomputed.

    missing: what the board requires and the entry lacks. Such an entry does not verify either, but
    what it has is shown, unranked.
    """

    name: str
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_board(board: Board) -> tuple[list[BoardEntry], list[Verdict]]:
    """Read and check every entry; returns those that could be read and a verdict for each file.

    Raises:
        TaskError: one of the board's own task files is wrong.
    """
    registry = board.registry()
    entries, verdicts = [], []
    for path in sorted(board.entries.glob("*.json")):
        verdict = Verdict(path.stem)
        verdicts.append(verdict)
        try:
            entry = read_entry(path)
        except ResultError as error:
            verdict.problems.append(str(error))
            continue
        entries.append(entry)
        if path.read_bytes() != entry_json(entry).encode("ascii"):
            verdict.problems.append(
                "the file is not, digit by digit, as `leaderboard add` writes it"
            )
        verify_entry(board, registry, entry, verdict)
    _verify_together(entries, verdicts)
    return entries, verdicts


def verify_entry(board: Board, registry: Registry, entry: BoardEntry, verdict: Verdict) -> None:
    """Check one entry by itself, adding to ``verdict``."""
    if entry.board != board.name:
        verdict.problems.append(f"it is an entry of {one_line(entry.board)}")
    if entry.texts and not board.rules.publish_texts:
        verdict.problems.append("it publishes texts, and this board may not")
    precisions = [part.run.precision.name for part in entry.runs]
    needed = board.rules.precisions if entry.role != "retrained" else (FULL,)
    for precision in needed:
        if precision not in precisions:
            lines = verdict.problems if entry.role != "unlearned" else verdict.missing
            lines.append(f"no run at {precision}, which this board requires")
    if len(set(precisions)) != len(precisions):
        verdict.problems.append("two runs of one precision")
    for field_name in ("weights_sha256", "tokenizer_sha256", "format"):
        if len({getattr(part.run.checkpoint, field_name) for part in entry.runs}) > 1:
            verdict.problems.append(f"its runs are of several checkpoints: {field_name} differs")
    for part in entry.runs:
        verdict.problems += _run_problems(board, part)
        for name, version in board.rules.tasks.items():
            _verify_task(_Place(registry, entry, part, name, version), verdict)
    if any(part.run.harness for part in entry.runs):
        verdict.notes.append(
            "lm-eval's results are as stated: an entry holds no documents of theirs"
        )
    if not entry.texts:
        verdict.notes.append(
            "no texts: the scores of single answers, the records' hashes and the number of empty "
            "outputs could not be recomputed"
        )


def _run_problems(board: Board, part: EntryRun) -> Iterator[str]:
    where = part.run.precision.name
    if part.run.protocol != board.rules.protocol or part.run.settings.protocol != part.run.protocol:
        yield f"{where}: protocol is {one_line(part.run.protocol)}, not {board.rules.protocol}"
    for name in ("gen_kwargs", "chat_template_sha256"):
        if getattr(part.run.settings, name) is not None:
            yield f"{where}: made with {name}, so its prompts or decoding are not the protocol's"
    if part.run.imported is not None:
        yield f"{where}: imported, so its weights are not known"
    if set(part.run.tasks) != set(board.rules.tasks) or set(part.samples) != set(part.run.tasks):
        yield f"{where}: its tasks are not the board's"
    precision = part.run.precision
    plain = precision.name in (FULL, "fp32", "bf16", "fp16")
    if not plain and precision.proof is None and part.run.checkpoint.format != "scripted":
        yield f"{where}: no proof that the quantization was in force"
    for name, result in part.run.tasks.items():
        if result.n < board.rules.min_samples:
            yield f"{where}: {name}: {result.n} samples, at least {board.rules.min_samples} needed"


@dataclass(frozen=True)
class _Place:
    registry: Registry
    entry: BoardEntry
    part: EntryRun
    task: str
    version: float

    def says(self, what: str) -> str:
        return f"{self.part.run.precision.name}: {self.task}: {what}"


def _verify_task(place: _Place, verdict: Verdict) -> None:
    result, records = place.part.run.tasks.get(place.task), place.part.samples.get(place.task)
    if result is None or not records:
        verdict.problems.append(place.says("missing, or without samples"))
        return
    if result.version != place.version:
        what = f"version {result.version:g}, the board has {place.version:g}"
        verdict.problems.append(place.says(what))
    spec = place.registry.tasks.get(place.task)
    if spec is None:
        verdict.notes.append(place.says("the task is not known here, so nothing was recomputed"))
        return
    verdict.problems += [place.says(what) for what in _task_problems(spec, result)]
    verdict.problems += [place.says(what) for what in _sample_problems(place, spec, records)]
    if place.entry.texts:
        verdict.problems += [place.says(what) for what in _score_problems(spec, records)]
        if _records_sha256(records) != result.records_sha256:
            verdict.problems.append(place.says("the samples are not those of records_sha256"))
    try:
        fresh = _summarize(spec, records, result, place.part.run.settings.seed)
    except UnlearnbenchError as error:
        verdict.problems.append(place.says(one_line(error)))
        return
    skip = set() if place.entry.texts else {"empty_outputs"}
    verdict.problems += [place.says(what) for what in _differences(result, fresh, skip)]


def _task_problems(spec: TaskSpec, result: TaskResult) -> Iterator[str]:
    if result.task_sha256 != Plan(spec, {}, ()).task_sha256:
        yield "the task's definition is not ours"
    if (result.metric, result.want) != (spec.metric, spec.want):
        yield "metric or direction is not the task's"
    for part in result.data:
        pin = spec.splits.get(part.split)
        if pin is None or pin.rows != part.rows or pin.sha256 not in (None, part.sha256):
            yield f"data hash or rows of split {one_line(part.split, 60)} are not the task's"
        if part.drift is not None:
            yield f"split {one_line(part.split, 60)} was read with drift"
    if {part.split for part in result.data} != set(spec.used_splits):
        yield "the splits read are not the task's"


def _sample_problems(
    place: _Place, spec: TaskSpec, records: Sequence[SampleRecord]
) -> Iterator[str]:
    n = place.part.run.tasks[place.task].n
    splits = [spec.test_split] if isinstance(spec, GenerationTask) else list(spec.used_splits)
    if [record.id for record in records] != [f"{s}/{i}" for s in splits for i in range(n)]:
        yield f"the samples are not the first {n} of {', '.join(splits)} in order"
    if any(record.task != place.task for record in records):
        yield "a sample is another task's"
    limit = place.part.run.settings.limit
    for split in splits:
        rows = spec.splits[split].rows
        if n != limited_count(rows, limit):
            yield f"{n} samples of {split}, the run's settings give another number"


def _score_problems(spec: TaskSpec, records: Sequence[SampleRecord]) -> Iterator[str]:
    """Answers whose stated scores are not what their texts give."""
    if not isinstance(spec, GenerationTask):
        return
    metric = generation_metric(spec.metric)
    for record in records:
        if not isinstance(record, GenerationRecord):
            yield f"{one_line(record.id, 60)} is no answer"
            continue
        scores = metric.score_output(record.output, record.target)
        stated = {metric.HEADLINE: record.score, **record.scores}
        for name, ours in scores.items():
            if abs(stated.get(name, math.inf) - ours) > SAME:
                where = one_line(record.id, 60)
                yield f"{where}: {name} is {stated.get(name)}, its texts give {ours}"


def _records_sha256(records: Sequence[SampleRecord]) -> str:
    """The hash of the samples file as the run folder writes it."""
    buffer = io.StringIO()
    for record in records:
        buffer.write(json.dumps(record.model_dump(exclude_none=True)) + "\n")
    return hashlib.sha256(buffer.getvalue().encode("ascii")).hexdigest()


def _summarize(
    spec: TaskSpec, records: Sequence[SampleRecord], result: TaskResult, seed: int
) -> TaskResult:
    samples = tuple(Sample(r.id, r.id.rsplit("/", 1)[0], "") for r in records)
    return summarize_task(Plan(spec, {}, samples), records, result.records_sha256, None, seed)


def _differences(result: TaskResult, fresh: TaskResult, skip: set[str]) -> Iterator[str]:
    """Figures that are not what the records give. Intervals are too: the bootstrap is seeded."""
    names = ["n", "empty_outputs", "scores", "auc", "auc_stderr", "auc_ci", "attack", "attacks"]
    if isinstance(result.auc, float):
        yield from _privleak_problems(result)
    else:
        names += ["value", "stderr", "ci"]
    stated, ours = result.model_dump(), fresh.model_dump()
    for name in names:
        if name not in skip and not _alike(stated[name], ours[name]):
            theirs, found = one_line(stated[name], 60), one_line(ours[name], 60)
            yield f"{name} is {theirs}, its samples give {found}"


def _privleak_problems(result: TaskResult) -> Iterator[str]:
    if result.value is None or result.auc_reference is None or result.auc is None:
        return
    ours = privleak(result.auc, result.auc_reference.auc)
    if not _alike(result.value, ours):
        yield f"PrivLeak is {result.value}, its AUC and reference give {ours}"


def _alike(stated: object, ours: object) -> bool:
    if isinstance(stated, Mapping) and isinstance(ours, Mapping):
        return stated.keys() == ours.keys() and all(_alike(stated[k], ours[k]) for k in ours)
    if isinstance(stated, (list, tuple)) and isinstance(ours, (list, tuple)):
        pairs = zip(stated, ours, strict=False)
        return len(stated) == len(ours) and all(_alike(a, b) for a, b in pairs)
    if isinstance(stated, float) and isinstance(ours, float):
        return abs(stated - ours) <= SAME * max(1.0, abs(ours))
    return stated == ours


def _verify_together(entries: Sequence[BoardEntry], verdicts: Sequence[Verdict]) -> None:
    """Entries against the retrained model's: the same samples, data and tokenizer; and against the
    target's: the same quantization.
    """
    by_name = {verdict.name: verdict for verdict in verdicts}
    anchors = {role: [e for e in entries if e.role == role] for role in ("target", "retrained")}
    for role, found in anchors.items():
        for entry in found[1:]:
            by_name[entry.name].problems.append(f"the board has a {role} already")
    if not anchors["retrained"]:
        return
    try:
        retrained = anchors["retrained"][0].loaded()
        base = retrained.full
        target = anchors["target"][0].loaded().runs if anchors["target"] else {}
    except ResultError:
        return  # said of that entry already
    for entry in entries:
        by_name[entry.name].problems += _differs(entry, base, target)
        try:
            require_same_harness([retrained, entry.loaded()])
        except UnlearnbenchError as error:
            by_name[entry.name].problems.append(one_line(error))


def _differs(entry: BoardEntry, base: LoadedRun, target: Mapping[str, LoadedRun]) -> list[str]:
    try:
        found = entry.loaded()
        for precision in found.runs:
            run = found.full if precision == FULL else found.at(precision)
            require_comparable(run, base, sorted(base.result.tasks))
            if precision in target:
                require_same_precision(run, target[precision])
    except UnlearnbenchError as error:
        return [one_line(error)]
    return []
