"""A board's entries against its target and its retrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unlearnbench.boards.entry import BoardEntry, EntryRun
from unlearnbench.errors import ResultError, UnlearnbenchError, one_line
from unlearnbench.lm_eval.tables import require_same_harness
from unlearnbench.metrics.membership import ReferenceScores
from unlearnbench.results import ANCHORS, FULL, AucReference, LikelihoodRecord
from unlearnbench.runs.entries import (
    FULL_BITS,
    Entry,
    LoadedRun,
    require_comparable,
    require_same_condition,
)
from unlearnbench.runs.notes import machine_notes
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

# Another machine's run of the retrained model may order a few texts otherwise.
_AUC_MARGIN = 0.01
SAME = 1e-9


@dataclass
class Verdict:
    """What is wrong with an entry, and what could not be recomputed."""

    name: str
    missing: list[str] = field(default_factory=list)
    """What the board requires and the entry or the board lacks. Such an entry does not verify
    either, but what it has is shown, unranked."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def alike(stated: object, ours: object) -> bool:
    """Whether two figures, or tables of them, are the same but for the last digits."""
    if isinstance(stated, Mapping) and isinstance(ours, Mapping):
        return stated.keys() == ours.keys() and all(alike(stated[k], ours[k]) for k in ours)
    if isinstance(stated, (list, tuple)) and isinstance(ours, (list, tuple)):
        pairs = zip(stated, ours, strict=False)
        return len(stated) == len(ours) and all(alike(a, b) for a, b in pairs)
    if isinstance(stated, float) and isinstance(ours, float):
        return abs(stated - ours) <= SAME * max(1.0, abs(ours))
    return stated == ours


def verify_anchors(
    registry: Registry, entries: Sequence[BoardEntry], verdicts: Mapping[str, Verdict]
) -> None:
    """Entries against the retrained model's: the same samples, data and tokenizer, and PrivLeak's
    zero; and against the target's: the same quantization. Adds to ``verdicts``, by entry's name.
    """
    anchors: dict[str, Entry] = {}
    for entry in entries:
        if entry.role not in ANCHORS:
            continue
        problems = verdicts[entry.name].problems
        if entry.role in anchors:
            problems.append(f"the board has a {entry.role} already")
            continue
        try:
            found = entry.loaded()
            _ = found.full  # raises where it is none
            anchors[entry.role] = found
        except ResultError as error:
            problems.append(one_line(error))
    for role in ANCHORS:
        if role not in anchors:
            for entry in entries:
                verdicts[entry.name].missing.append(f"the board has no {role} to hold it against")
    if len(anchors) < 2:
        return
    target, retrained = anchors["target"], anchors["retrained"]
    for entry in entries:
        verdicts[entry.name].problems += _against(entry, target, retrained)
    for entry in entries:  # once it is known that the retrained model's records are sound
        verdict = verdicts[entry.name]
        if verdict.problems or verdicts[retrained.name].problems:
            continue
        verdict.notes += machine_notes(entry.loaded(), anchors)
        for part in entry.runs:
            for name in part.run.tasks:
                spec = registry.tasks.get(name)
                if spec is None or not spec.needs_reference:
                    continue
                try:
                    problem, note = _check_privleak(spec, part, retrained)
                except UnlearnbenchError as error:
                    problem, note = one_line(error), ""
                where = f"{part.run.condition.name}: {name}: "
                verdict.problems += [where + problem] if problem else []
                verdict.notes += [where + note] if note else []


def _against(entry: BoardEntry, target: Entry, retrained: Entry) -> Iterator[str]:
    try:
        found = entry.loaded()
        runs = {p: found.full if p == FULL else run for p, run in found.runs.items()}
    except ResultError as error:
        yield one_line(error)
        return
    base = retrained.full
    for precision, run in runs.items():
        expected = target.runs.get(precision)
        try:
            require_comparable(run, base, sorted(base.result.tasks))
            if expected is not None:
                require_same_condition(run, expected)
        except UnlearnbenchError as error:
            yield one_line(error)
        else:
            yield from _copied(entry, run, target, base)
    try:
        require_same_harness([retrained, found])
    except UnlearnbenchError as error:
        yield one_line(error)


def _copied(entry: BoardEntry, run: LoadedRun, target: Entry, base: LoadedRun) -> Iterator[str]:
    """What only a copy of another run has, or one that was not quantized."""
    mine, at = run.result.checkpoint, run.condition
    for role, anchor in (("target", target.full), ("retrained", base)):
        theirs = anchor.result.checkpoint
        if entry.role != role and mine.weights_sha256 == theirs.weights_sha256:
            yield f"{at}: its weights are the {role}'s"
        if mine.format == "scripted" != theirs.format:
            yield f"{at}: it comes from a script, and the {role} from a checkpoint"
    proof, expected = run.result.condition.proof, target.runs.get(at)
    if proof is None or expected is None:
        return
    known = expected.result.condition
    # Kinds of modules and share of the weights: of WHP's pair of models there is twice all.
    coverage = [
        p and ({*p.covered_modules}, round(p.covered_weights / p.total_weights, 9))
        for p in (proof, known.proof)
    ]
    if known.proof is not None and coverage[0] != coverage[1]:
        yield f"{at}: other modules or another share of the weights than the target's are quantized"
    if proof.on_grid or expected.bits is None or expected.bits >= FULL_BITS:
        return
    for part in entry.runs:
        other = part.run.condition
        if other.name == at or (other.proof and other.proof.on_grid):
            continue
        # Rounding moves the likelihood of every text; half of them being alike is no chance.
        for task in part.samples.keys() & run.result.tasks.keys():
            records = part.samples[task]
            pairs = zip(records, run.records(task), strict=False)
            same = sum(isinstance(a, LikelihoodRecord) and a.scores == b.scores for a, b in pairs)
            if same > len(records) / 2:
                what = f"{same} of {len(records)} texts have the figures of {other.name}"
                yield f"{at}: {one_line(task)}: {what}"


def _check_privleak(spec: TaskSpec, part: EntryRun, retrained: Entry) -> tuple[str, str]:
    """What is wrong with the value that the entry states, and what could not be recomputed, each
    empty where nothing is. The board's tables have their own value, against the retrained entry in
    full precision.
    """
    result = part.run.tasks[spec.task]
    reference = result.auc_reference
    if reference is None:
        stated = f"PrivLeak is {result.value} without a reference"
        return "" if result.value is None else stated, ""
    wrong = _reference_problem(spec, reference, retrained)
    if wrong is not None:
        return wrong, ""
    records, seed = part.samples[spec.task], part.run.settings.seed
    ours = spec.against(records, ReferenceScores(reference.auc), seed).value
    if result.value is None or not alike(result.value, ours):
        return f"PrivLeak is {result.value}, its AUC and reference give {ours}", ""
    spread = (result.stderr, result.ci)
    if result.intervals is None or spread == (None, None):
        return "", ""
    for zero in references(spec, reference, retrained):
        found = spec.against(records, zero, seed)
        if alike(spread, (found.stderr, found.ci)):
            return "", ""
    return "", "PrivLeak's own interval is as stated; no table shows it"


def references(spec: TaskSpec, stated: AucReference, retrained: Entry) -> Iterator[ReferenceScores]:
    """What the interval of a PrivLeak may be computed against, likeliest first: a stated AUC as it
    is; of a run, the retrained entry's runs of that AUC. None where another machine's run of the
    retrained model ordered its texts otherwise.
    """
    if stated.kind == "stated":
        yield ReferenceScores(stated.auc)
        return
    runs = retrained.runs.values()
    for run in sorted(runs, key=lambda run: not stated.source.endswith(f" at {run.condition}")):
        found = spec.reference_scores(run.records(spec.task))
        if alike(found.auc, stated.auc):
            yield found


def _reference_problem(spec: TaskSpec, reference: AucReference, retrained: Entry) -> str | None:
    if reference.kind == "stated":
        if any(alike(auc, reference.auc) for auc in spec.stated_aucs()):
            return None
        return f"PrivLeak's reference is AUC {reference.auc}, which the task does not state"
    if reference.weights_sha256 != retrained.full.result.checkpoint.weights_sha256:
        return "PrivLeak's reference is of other weights than the board's retrained model"
    theirs = [run.task(spec.task).auc or 0.0 for run in retrained.runs.values()]
    if min(abs(auc - reference.auc) for auc in theirs) <= _AUC_MARGIN:
        return None
    return (
        f"PrivLeak's reference is AUC {reference.auc}, the board's retrained model has {theirs[0]}"
    )
