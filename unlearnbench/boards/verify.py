"""Everything about an entry that can be recomputed, recomputed. Nothing in it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from unlearnbench.boards.definition import Board
from unlearnbench.boards.entry import BoardEntry, EntryRun, is_as_written, read_entry
from unlearnbench.boards.samples import (
    alike,
    digest_problems,
    records_sha256,
    sample_problems,
    score_problems,
    summarize_again,
)
from unlearnbench.boards.together import Verdict, verify_together
from unlearnbench.errors import OptionError, ResultError, UnlearnbenchError, one_line
from unlearnbench.results import FULL, ON_GRID, STORED, Proof, TaskResult
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec


def verify_board(board: Board) -> tuple[list[BoardEntry], list[Verdict]]:
    """Read and check every entry; returns those that could be read and a verdict for each file.

    Raises:
        OptionError: the board's tasks are not known, or it ranks by one where high is good.
        TaskError: one of the board's own task files is wrong.
    """
    registry = _require_tasks(board)
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
        if not is_as_written(path, entry):
            verdict.problems.append(
                "the file is not, digit by digit, as `leaderboard add` writes it"
            )
        verify_entry(board, registry, entry, verdict)
    verify_together(registry, entries, {verdict.name: verdict for verdict in verdicts})
    return entries, verdicts


def verify_entry(board: Board, registry: Registry, entry: BoardEntry, verdict: Verdict) -> None:
    """Check one entry by itself, adding to ``verdict``."""
    if entry.board != board.name:
        verdict.problems.append(f"it is an entry of {one_line(entry.board)}")
    if entry.texts and not board.rules.publish_texts:
        verdict.problems.append("it publishes texts, and this board may not")
    precisions = [part.run.condition.name for part in entry.runs]
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
            texts = entry.texts and board.rules.publish_texts
            _verify_task(_Place(registry, entry, part, name, version, texts), verdict)
    if not entry.texts:
        for name in board.rules.tasks:
            verdict.problems += digest_problems(entry, registry.tasks[name])
    if any(part.run.harness for part in entry.runs):
        verdict.notes.append(
            "lm-eval's results are as stated: an entry holds no documents of theirs"
        )
    if not entry.texts:
        verdict.notes.append(
            "no texts: the scores of single answers, the records' hashes and the number of empty "
            "outputs could not be recomputed"
        )


def _require_tasks(board: Board) -> Registry:
    registry = board.registry()
    for name in board.rules.tasks:
        if name not in registry.tasks:
            raise OptionError(
                f"{board.name}: no task {one_line(name)} in the package or in the board's tasks/"
            )
    for name in board.rules.ranking:
        if registry.tasks[name].want == "high":  # the less is retained, the better the place
            raise OptionError(
                f"{board.name}: ranking: {name} is a retain task; entries are ranked by forget "
                "tasks, and utility_floor is about retained knowledge"
            )
    return registry


def _run_problems(board: Board, part: EntryRun) -> Iterator[str]:
    where = part.run.condition.name
    if part.run.protocol != board.rules.protocol or part.run.settings.protocol != part.run.protocol:
        yield f"{where}: protocol is {one_line(part.run.protocol)}, not {board.rules.protocol}"
    for name in ("gen_kwargs", "chat_template_sha256"):
        if getattr(part.run.settings, name) is not None:
            yield f"{where}: made with {name}, so its prompts or decoding are not the protocol's"
    if part.run.imported is not None:
        yield f"{where}: imported, so its weights are not known"
    if set(part.run.tasks) != set(board.rules.tasks) or set(part.samples) != set(part.run.tasks):
        yield f"{where}: its tasks are not the board's"
    condition = part.run.condition
    plain = condition.name in STORED
    if not plain and part.run.checkpoint.format != "scripted" and not _in_force(condition.proof):
        yield f"{where}: no proof that the quantization was in force"
    for name, result in part.run.tasks.items():
        if result.n < board.rules.min_samples:
            yield f"{where}: {name}: {result.n} samples, at least {board.rules.min_samples} needed"


def _in_force(proof: Proof | None) -> bool:
    if proof is None or not proof.covered_weights or not proof.compared_modules:
        return False
    if proof.on_grid:
        return (proof.max_relative_error or 0.0) < ON_GRID
    return bool(proof.changed_share)


@dataclass(frozen=True)
class _Place:
    registry: Registry
    entry: BoardEntry
    part: EntryRun
    task: str
    version: float
    texts: bool
    """Whether the entry has texts, and may."""

    def says(self, what: str) -> str:
        return f"{self.part.run.condition.name}: {self.task}: {what}"


def _verify_task(place: _Place, verdict: Verdict) -> None:
    result, records = place.part.run.tasks.get(place.task), place.part.samples.get(place.task)
    if result is None or not records:
        verdict.problems.append(place.says("missing, or without samples"))
        return
    if result.version != place.version:
        what = f"version {result.version:g}, the board has {place.version:g}"
        verdict.problems.append(place.says(what))
    spec = place.registry.tasks[place.task]
    verdict.problems += [place.says(what) for what in _task_problems(spec, result)]
    limit = place.part.run.settings.limit
    wrong = [place.says(what) for what in sample_problems(spec, records, result.n, limit)]
    if wrong:
        verdict.problems += wrong
        return
    if place.texts:
        verdict.problems += [place.says(what) for what in score_problems(spec, records)]
        if records_sha256(records) != result.records_sha256:
            verdict.problems.append(place.says("the samples are not those of records_sha256"))
    try:
        fresh = summarize_again(spec, records, result, place.part.run.settings.seed)
    except UnlearnbenchError as error:
        verdict.problems.append(place.says(one_line(error)))
        return
    skip = set() if place.texts else {"empty_outputs"}
    verdict.problems += [place.says(what) for what in _differences(result, fresh, skip)]


def _task_problems(spec: TaskSpec, result: TaskResult) -> Iterator[str]:
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


def _differences(result: TaskResult, fresh: TaskResult, skip: set[str]) -> Iterator[str]:
    """Figures that are not what the records give. Intervals are too: the bootstrap is seeded."""
    names = ["n", "empty_outputs", "scores", "auc", "auc_stderr", "auc_ci", "attack", "attacks"]
    if result.auc is None:  # PrivLeak needs the retrained model's entry
        names += ["value", "stderr", "ci"]
    stated, ours = result.model_dump(), fresh.model_dump()
    for name in names:
        if name not in skip and not alike(stated[name], ours[name]):
            theirs, found = one_line(stated[name], 60), one_line(ours[name], 60)
            yield f"{name} is {theirs}, its samples give {found}"
