"""A board's entries against its target and its retrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unlearnbench.boards.entry import BoardEntry, EntryRun
from unlearnbench.boards.samples import alike
from unlearnbench.errors import ResultError, UnlearnbenchError, one_line
from unlearnbench.harness.table import require_same_harness
from unlearnbench.metrics import likelihood_metric
from unlearnbench.metrics.membership import ReferenceScores
from unlearnbench.recovery import FULL
from unlearnbench.results import LikelihoodRecord, SampleRecord
from unlearnbench.runset import (
    FULL_BITS,
    Entry,
    LoadedRun,
    require_comparable,
    require_same_precision,
)
from unlearnbench.tasks import LikelihoodTask, Registry

__all__ = ["Verdict", "verify_together"]

# Another machine's run of the retrained model may order a few texts otherwise.
_AUC_MARGIN = 0.01


@dataclass
class Verdict:
    """What is wrong with an entry, and what could not be recomputed.

    missing: what the board requires and the entry or the board lacks. Such an entry does not verify
    either, but what it has is shown, unranked.
    """

    name: str
    missing: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_together(
    registry: Registry, entries: Sequence[BoardEntry], verdicts: Mapping[str, Verdict]
) -> None:
    """Entries against the retrained model's: the same samples, data and tokenizer, and PrivLeak's
    zero; and against the target's: the same quantization. Adds to ``verdicts``, by entry's name.
    """
    anchors: dict[str, Entry] = {}
    for entry in entries:
        if entry.role == "unlearned":
            continue
        problems = verdicts[entry.name].problems
        if entry.role in anchors:
            problems.append(f"the board has a {entry.role} already")
            continue
        try:
            anchors[entry.role] = _in_full_precision(entry)
        except ResultError as error:
            problems.append(one_line(error))
    for entry in entries:
        verdict = verdicts[entry.name]
        for role in ("target", "retrained"):
            if role not in anchors:
                verdict.missing.append(f"the board has no {role} to hold it against")
        if anchors.keys() == {"target", "retrained"}:
            verdict.problems += _against(entry, anchors["target"], anchors["retrained"])
        retrained = anchors.get("retrained")
        if retrained and not (verdict.problems or verdicts[retrained.name].problems):
            _verify_privleak(registry, entry, retrained, verdict)


def _in_full_precision(entry: BoardEntry) -> Entry:
    found = entry.loaded()
    _ = found.full  # raises where it is none
    return found


def _against(entry: BoardEntry, target: Entry, retrained: Entry) -> Iterator[str]:
    try:
        found = entry.loaded()
        runs = {p: found.full if p == FULL else run for p, run in found.runs.items()}
    except ResultError as error:
        yield one_line(error)
        return
    base = retrained.full
    for precision, run in runs.items():
        differs = _differs(run, target.runs.get(precision), base)
        yield from [differs] if differs else _copied(entry, run, target, base)
    try:
        require_same_harness([retrained, found])
    except UnlearnbenchError as error:
        yield one_line(error)


def _differs(run: LoadedRun, target: LoadedRun | None, base: LoadedRun) -> str | None:
    try:
        require_comparable(run, base, sorted(base.result.tasks))
        if target is not None:
            require_same_precision(run, target)
    except UnlearnbenchError as error:
        return one_line(error)
    return None


def _copied(entry: BoardEntry, run: LoadedRun, target: Entry, base: LoadedRun) -> Iterator[str]:
    """What only a copy of another run has, or one that was not quantized."""
    mine, at = run.result.checkpoint, run.precision
    for role, anchor in (("target", target.full), ("retrained", base)):
        theirs = anchor.result.checkpoint
        if entry.role != role and mine.weights_sha256 == theirs.weights_sha256:
            yield f"{at}: its weights are the {role}'s"
        if mine.format == "scripted" != theirs.format:
            yield f"{at}: it comes from a script, and the {role} from a checkpoint"
    proof, expected_run = run.result.precision.proof, target.runs.get(at)
    if proof is None or expected_run is None:
        return
    known = expected_run.result.precision
    if known.proof is not None:
        for name in ("quantized_weights", "quantized_modules"):
            ours, expected = getattr(proof, name), getattr(known.proof, name)
            if ours != expected:
                what = f"{one_line(ours, 60)}, the target's {one_line(expected, 60)}"
                yield f"{at}: {name} is {what}: something else was quantized"
    if proof.on_grid or known.bits is None or known.bits >= FULL_BITS:
        return
    for part in entry.runs:
        if part.run.precision.name != FULL:
            continue
        for task, records in part.samples.items():
            leaks = [r.scores for r in records if isinstance(r, LikelihoodRecord)]
            if leaks and leaks == [r.scores for r in run.records(task)]:
                yield f"{at}: {one_line(task)}: every figure is that in full precision"


def _verify_privleak(
    registry: Registry, entry: BoardEntry, retrained: Entry, verdict: Verdict
) -> None:
    for part in entry.runs:
        for name in part.run.tasks:
            spec = registry.tasks.get(name)
            if isinstance(spec, LikelihoodTask):
                where = f"{part.run.precision.name}: {name}: "
                verdict.problems += [where + x for x in _privleak_problems(spec, part, retrained)]


def _privleak_problems(spec: LikelihoodTask, part: EntryRun, retrained: Entry) -> Iterator[str]:
    result = part.run.tasks[spec.task]
    stated = result.auc_reference
    if stated is None:
        if result.value is not None:
            yield f"PrivLeak is {result.value} without a reference"
        return
    if stated.kind == "run" and stated.weights_sha256 != _weights(retrained.full):
        yield "PrivLeak's reference is of other weights than the board's retrained model"
        return
    theirs = {_auc(run, spec): run for run in retrained.runs.values()}
    nearest = min(theirs, key=lambda value: abs(value - stated.auc))
    if abs(nearest - stated.auc) > _AUC_MARGIN:
        yield f"PrivLeak's reference is AUC {stated.auc}, the board's retrained model has {nearest}"
        return
    measured = stated.kind == "run" and alike(nearest, stated.auc)
    groups = _groups(spec, theirs[nearest].records(spec.task)) if measured else ((), ())
    names = ("value", "stderr", "ci") if measured or stated.kind == "stated" else ("value",)
    members, nonmembers = (
        [{spec.attack: score} for score in group]
        for group in _groups(spec, part.samples[spec.task])
    )
    reference = ReferenceScores(stated.auc, *groups)
    seed = part.run.settings.seed
    fresh = likelihood_metric(spec.metric).summarize(
        members, nonmembers, spec.attack, reference, seed
    )
    for name in names:
        given, ours = getattr(result, name), getattr(fresh.privleak, name)
        if not alike(given, ours):
            yield f"PrivLeak's {name} is {one_line(given, 60)}, its samples give {ours}"


def _weights(run: LoadedRun) -> str:
    return run.result.checkpoint.weights_sha256


def _auc(run: LoadedRun, spec: LikelihoodTask) -> float:
    found = run.task(spec.task).auc
    if found is None:
        raise ResultError(f"{run.path} has no AUC of {spec.task}")
    return found


def _groups(
    spec: LikelihoodTask, records: Sequence[SampleRecord]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The headline attack's scores of members and of the others."""
    found = [r for r in records if isinstance(r, LikelihoodRecord)]
    members, nonmembers = (
        tuple(r.scores[spec.attack] for r in found if r.split == split)
        for split in (spec.member_split, spec.nonmember_split)
    )
    return members, nonmembers
