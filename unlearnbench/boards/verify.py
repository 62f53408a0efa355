"""Everything about an entry that can be recomputed, recomputed. Nothing in it is believed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from unlearnbench.boards.columns import decisive_result
from unlearnbench.boards.entry import Board, BoardEntry, EntryRun, is_as_written, read_entry
from unlearnbench.boards.verify_anchors import Verdict, alike, verify_anchors
from unlearnbench.boards.verify_samples import digest_problems, rescored, sample_problems
from unlearnbench.errors import OptionError, ResultError, UnlearnbenchError, one_line
from unlearnbench.recovery.controls import leaves, needs_control
from unlearnbench.results import (
    ANCHORS,
    FULL,
    ON_GRID,
    STORED,
    AnswerRecord,
    LikelihoodRecord,
    TaskResult,
)
from unlearnbench.runs.entries import require_alike
from unlearnbench.runs.fingerprint import ASKED
from unlearnbench.runs.folder import encode_records
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.rows import task_result
from unlearnbench.tasks.spec import TaskSpec


def verify_board(board: Board) -> tuple[list[BoardEntry], list[Verdict]]:
    """Read and check every entry; returns those that could be read and a verdict for each file.

    Raises:
        OptionError: the board's tasks are not known, or it ranks by one where high is good.
        TaskError: one of the board's own task files is wrong.
    """
    registry = board.registry()
    for name in board.rules.tasks:
        if name not in registry.tasks:
            where = "in the package or in the board's tasks/"
            raise OptionError(f"{board.name}: no task {one_line(name)} {where}")
    for name in board.rules.ranking:
        if registry.tasks[name].want == "high":  # the less is retained, the better the place
            raise OptionError(
                f"{board.name}: ranking: {name} is a retain task; entries are ranked by forget "
                "tasks, and utility_floor is about retained knowledge"
            )
    entries, verdicts = [], dict[str, Verdict]()
    for path in sorted(board.entries.glob("*.json")):
        verdict = verdicts[path.stem] = Verdict(path.stem)
        try:
            entry = read_entry(path)
        except ResultError as error:
            verdict.problems.append(str(error))
            continue
        entries.append(entry)
        if not is_as_written(path, entry):
            what = "the file is not, digit by digit, as `leaderboard add` writes it"
            verdict.problems.append(what)
        _verify_entry(board, registry, entry, verdict)
    verify_anchors(registry, entries, verdicts)
    return entries, list(verdicts.values())


def sound_entries(board: Board) -> list[BoardEntry]:
    """Every entry. Raises as ``verify_board``, ResultError where one is wrong in more than a
    missing run, OptionError where there is none.
    """
    entries, verdicts = verify_board(board)
    wrong = [v for v in verdicts if v.problems]
    if wrong:
        raise ResultError(f"{board.name}: {wrong[0].name}: {one_line(wrong[0].problems[0])}")
    if not entries:
        raise OptionError(f"{board.name} has no entries yet")
    return entries


def _verify_entry(board: Board, registry: Registry, entry: BoardEntry, verdict: Verdict) -> None:
    """One entry by itself."""
    if entry.board != board.name:
        verdict.problems.append(f"it is an entry of {one_line(entry.board)}")
    if entry.texts and not board.rules.publish_texts:
        verdict.problems.append("it publishes texts, and this board may not")
    precisions = [part.run.condition.name for part in entry.runs]
    needed = board.rules.precisions
    if entry.role == "retrained":  # in full precision, and as the control
        needed = tuple(p for p in needed if p == FULL or needs_control(p))
    for precision in needed:
        if precision not in precisions:
            lines = verdict.problems if entry.role in ANCHORS else verdict.missing
            lines.append(f"no run at {precision}, which this board requires")
    try:
        require_alike(entry.loaded())
    except (OptionError, ResultError) as error:
        verdict.problems.append(one_line(error, 300))
    for field_name in ("weights_sha256", "format"):
        if len({getattr(part.run.checkpoint, field_name) for part in entry.runs}) > 1:
            verdict.problems.append(f"its runs are of several checkpoints: {field_name} differs")
    texts = entry.texts and board.rules.publish_texts
    for part in entry.runs:
        where = part.run.condition.name
        verdict.problems += [f"{where}: {what}" for what in _run_problems(board, part)]
        for name, version in board.rules.tasks.items():
            spec = registry.of_version(name, version)
            problems = _task_problems(spec, version, part, texts, entry.is_compact)
            verdict.problems += [f"{where}: {name}: {what}" for what in problems]
    verdict.notes += _old_intervals(board, entry)
    if any(part.run.harness for part in entry.runs):
        what = "lm-eval's results are as stated: an entry holds no documents of theirs"
        verdict.notes.append(what)
    if not entry.texts:
        for name in board.rules.tasks:
            verdict.problems += digest_problems(entry, registry.tasks[name])
        verdict.notes.append(
            "no texts: the scores of single answers, the records' hashes and the number of empty "
            "outputs could not be recomputed"
        )
    elif entry.is_compact and any(registry.tasks[n].needs_reference for n in board.rules.tasks):
        verdict.notes.append(
            "the records' hashes of membership attacks could not be recomputed: of each text there "
            "is the score of the attack that decides"
        )


def _old_intervals(board: Board, entry: BoardEntry) -> Iterator[str]:
    """Which tasks hold intervals that are not computed as ours are, and how to replace them."""
    places, tasks = dict[str, list[str]](), dict[str, list[str]]()
    for part in entry.runs:
        for name in sorted(board.rules.tasks.keys() & part.run.tasks.keys()):
            if part.run.tasks[name].intervals is None:
                places.setdefault(name, []).append(part.run.condition.name)
    for name, at in places.items():
        tasks.setdefault(", ".join(at), []).append(name)
    if tasks:
        where = "; ".join(f"{', '.join(names)} at {at}" for at, names in tasks.items())
        yield (
            f"{entry.name}.json holds intervals of the old kind, which are not checked: "
            f"{one_line(where, 1000)}; run `unlearnbench leaderboard rewrite` to replace them"
        )


def _run_problems(board: Board, part: EntryRun) -> Iterator[str]:
    run, rules = part.run, board.rules
    if run.protocol != rules.protocol or run.settings.protocol != run.protocol:
        yield f"protocol is {one_line(run.protocol)}, not {rules.protocol}"
    for name in ("gen_kwargs", "chat_template_sha256", *ASKED):
        if getattr(run.settings, name) is not None:
            yield f"made with {name}, so its prompts or decoding are not the protocol's"
    if run.imported is not None:
        yield "imported, so its weights are not known"
    if set(run.tasks) != set(rules.tasks) or set(part.samples) != set(run.tasks):
        yield "its tasks are not the board's"
    proof, in_force = run.condition.proof, run.checkpoint.format == "scripted"
    if proof is not None and proof.covered_weights and proof.compared_modules:
        small = (proof.max_relative_error or 0.0) < ON_GRID
        in_force = small if proof.on_grid else bool(proof.changed_share)
    if run.condition.name not in STORED and not in_force:
        yield "no proof that the quantization was in force"
    for name, result in run.tasks.items():
        if result.n < rules.min_samples:
            yield f"{name}: {result.n} samples, at least {rules.min_samples} needed"


def _task_problems(
    spec: TaskSpec, version: float, part: EntryRun, texts: bool, compact: bool
) -> Iterator[str]:
    """What a task's result states and its samples, or the board's task, do not bear out. ``texts``:
    whether the entry has texts, and may.
    """
    result, records = part.run.tasks.get(spec.task), part.samples.get(spec.task)
    if result is None or not records:
        yield "missing, or without samples"
        return
    if result.version != version:
        yield f"version {result.version:g}, the board has {version:g}"
    yield from _definition_problems(spec, result)
    wrong = list(sample_problems(spec, part, compact))
    yield from wrong
    if wrong:
        return
    if result.unchanged and not leaves(part.run.condition.name, spec):
        yield "marked unchanged, and its condition does not leave it as it is"
    if texts or spec.record_type is AnswerRecord:  # whose facts are numbers
        problems, whole = rescored(spec, records, compact)
        records = tuple(whole)
        yield from problems
    hashed = texts and not (compact and spec.record_type is LikelihoodRecord)
    if hashed and hashlib.sha256(encode_records(records)).hexdigest() != result.records_sha256:
        yield "the samples are not those of records_sha256"
    try:
        fresh = task_result(spec, records, result.records_sha256, part.run.settings.seed)
    except UnlearnbenchError as error:
        yield one_line(error)
        return
    if compact:  # what is held by the records' hash alone is not stated
        fresh = decisive_result(fresh)
    # Figures that are not what the records give. Intervals are too: the bootstrap is seeded.
    names = ["n", "scores", "auc", "auc_stderr", "auc_ci", "attack", "attacks", "leak"]
    names += ["empty_outputs"] if texts else []
    if result.auc is None:  # PrivLeak needs the retrained model's entry
        names += ["value", "stderr", "ci"]
    stated, ours = (_figures(each, result.intervals) for each in (result, fresh))
    for name in names:
        if not alike(stated[name], ours[name]):
            theirs, found = one_line(stated[name], 60), one_line(ours[name], 60)
            yield f"{name} is {theirs}, its samples give {found}"


def _figures(result: TaskResult, kind: str | None) -> dict[str, Any]:
    """A result's fields; without intervals where they are of the old ``kind``."""
    fields = result.model_dump()
    for part in [] if kind else [fields, *(fields["attacks"] or {}).values()]:
        part.update(dict.fromkeys(("stderr", "ci", "auc_stderr", "auc_ci")))
    return fields


def _definition_problems(spec: TaskSpec, result: TaskResult) -> Iterator[str]:
    if result.task_sha256 != spec.definition_sha256:
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
