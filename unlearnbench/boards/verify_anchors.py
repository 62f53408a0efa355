"""A board's entries against its target and its retrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unlearnbench.boards.entry import BoardEntry, EntryRun
from unlearnbench.boards.verify_records import alike
from unlearnbench.errors import ResultError, UnlearnbenchError, one_line
from unlearnbench.lm_eval.tables import require_same_harness
from unlearnbench.metrics.membership import ReferenceScores
from unlearnbench.results import FULL, AucReference, LikelihoodRecord
from unlearnbench.runs.entries import (
    FULL_BITS,
    Entry,
    LoadedRun,
    require_comparable,
    require_same_condition,
)
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.spec import TaskSpec

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


def verify_anchors(
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
            found = entry.loaded()
            _ = found.full  # raises where it is none
            anchors[entry.role] = found
        except ResultError as error:
            problems.append(one_line(error))
    for role in ("target", "retrained"):
        if role not in anchors:
            for entry in entries:
                verdicts[entry.name].missing.append(f"the board has no {role} to hold it against")
    if len(anchors) < 2:
        return
    target, retrained = anchors["target"], anchors["retrained"]
    for entry in entries:
        verdicts[entry.name].problems += _against(entry, target, retrained)
    for entry in entries:  # once it is known that the retrained model's records are sound
        if not (verdicts[entry.name].problems or verdicts[retrained.name].problems):
            _verify_privleak(registry, entry, retrained, verdicts[entry.name])


def _against(entry: BoardEntry, target: Entry, retrained: Entry) -> Iterator[str]:
    try:
        found = entry.loaded()
        runs = {p: found.full if p == FULL else run for p, run in found.runs.items()}
    except ResultError as error:
        yield one_line(error)
        return
    base = retrained.full
    for precision, run in runs.items():
        differs = _differs(run, base, target.runs.get(precision))
        yield from [differs] if differs else _copied(entry, run, target, base)
    try:
        require_same_harness([retrained, found])
    except UnlearnbenchError as error:
        yield one_line(error)


def _differs(run: LoadedRun, base: LoadedRun, target: LoadedRun | None) -> str | None:
    try:
        require_comparable(run, base, sorted(base.result.tasks))
        if target is not None:
            require_same_condition(run, target)
    except UnlearnbenchError as error:
        return one_line(error)
    return None


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
    if proof.on_grid or known.options.bits is None or known.options.bits >= FULL_BITS:
        return
    for part in entry.runs:
        other = part.run.condition
        if other.name != at and not (other.proof and other.proof.on_grid):
            yield from _same_figures(run, part, at)


def _same_figures(run: LoadedRun, other: EntryRun, at: str) -> Iterator[str]:
    """Rounding moves the likelihood of every text; half of them being alike is no chance."""
    for task in other.samples.keys() & run.result.tasks.keys():
        records = other.samples[task]
        pairs = zip(records, run.records(task), strict=False)
        same = sum(isinstance(a, LikelihoodRecord) and a.scores == b.scores for a, b in pairs)
        if same > len(records) / 2:
            what = f"{same} of {len(records)} texts have the figures of {other.run.condition.name}"
            yield f"{at}: {one_line(task)}: {what}"


def _verify_privleak(
    registry: Registry, entry: BoardEntry, retrained: Entry, verdict: Verdict
) -> None:
    for part in entry.runs:
        for name in part.run.tasks:
            spec = registry.tasks.get(name)
            if spec is not None and spec.needs_reference:
                where = f"{part.run.condition.name}: {name}: "
                try:
                    _check_privleak(spec, part, retrained, where, verdict)
                except UnlearnbenchError as error:
                    verdict.problems.append(where + one_line(error))


def _check_privleak(
    spec: TaskSpec, part: EntryRun, retrained: Entry, where: str, verdict: Verdict
) -> None:
    """The value that the entry states. The board's tables have their own, against the retrained
    entry in full precision.
    """
    result = part.run.tasks[spec.task]
    reference = result.auc_reference
    if reference is None:
        if result.value is not None:
            verdict.problems.append(f"{where}PrivLeak is {result.value} without a reference")
        return
    wrong = _reference_problem(spec, reference, retrained)
    if wrong is not None:
        verdict.problems.append(where + wrong)
        return
    candidates = [ReferenceScores(reference.auc)]
    if reference.kind == "run":
        theirs = (spec.reference_scores(r.records(spec.task)) for r in retrained.runs.values())
        candidates = [replace(scores, auc=reference.auc) for scores in theirs]
    records, seed = part.samples[spec.task], part.run.settings.seed
    found = [spec.against(records, candidate, seed) for candidate in candidates]
    if result.value is None or not alike(result.value, found[0].value):
        stated = f"PrivLeak is {result.value}, its AUC and reference give {found[0].value}"
        verdict.problems.append(where + stated)
    elif not any(alike((result.stderr, result.ci), (ours.stderr, ours.ci)) for ours in found):
        # Another machine's run of the retrained model may order its texts otherwise.
        verdict.notes.append(f"{where}PrivLeak's own interval is as stated; no table shows it")


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
