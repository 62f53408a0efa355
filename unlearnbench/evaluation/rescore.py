"""What a finished run's records give, without its model: every task's figures again, and those that
are made of several tasks or of two runs (TOFU, arXiv 2401.06121: forget quality, model utility).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from unlearnbench.errors import MetricError, OptionError
from unlearnbench.evaluation.reference import open_reference
from unlearnbench.metrics.membership import auc, privleak
from unlearnbench.metrics.truth import (
    ForgetQuality,
    Mean,
    forget_quality,
    harmonic_mean,
    truth_ratio,
)
from unlearnbench.results import AnswerRecord, LikelihoodRecord, SampleRecord
from unlearnbench.runs.entries import LoadedRun, require_comparable, require_whole, run_key
from unlearnbench.runs.folder import read_run
from unlearnbench.tasks.kinds.answers import AnswerFacts, AnswersTask, facts_of
from unlearnbench.tasks.kinds.likelihood import LikelihoodTask
from unlearnbench.tasks.registry import Registry
from unlearnbench.tasks.rows import task_result
from unlearnbench.tasks.spec import TaskSpec

_SAME = 1e-9
_PERCENT = 1e-6  # PrivLeak there has 1e-10 in its denominator
_HEADLINE = "privleak_Min-40%"  # the attack of TOFU's PrivLeak
UTILITY = {
    f"{which}_{name}": (f"tofu_{which}_{task}", figure)
    for which, probability in (
        ("retain", "probability"),
        ("real_authors", "probability_normalised"),
        ("world_facts", "probability_normalised"),
    )
    for name, task, figure in (
        ("probability", "probability", probability),
        ("rouge", "rouge", "rougeL_recall_stem"),
        ("truth", "probability", "truth_better"),
    )
}
"""The nine means that TOFU's model utility is the harmonic mean of: a task and its figure each."""


@dataclass
class Rescored:
    """What the records of a run give."""

    values: dict[str, dict[str, float]] = field(default_factory=dict)
    """By task, every figure in the unit of ``run.json``."""
    forget_quality: dict[str, dict[Mean, ForgetQuality]] = field(default_factory=dict)
    """By task, for both means of the false answers."""
    utility: float | None = None
    """TOFU's model utility, from 0 to 1."""
    parts: dict[str, float] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    """How many rows each part is the mean of."""
    differences: dict[str, float] = field(default_factory=dict)
    """Ours minus what ``run.json``, or the files that it was imported from, state."""
    notes: list[str] = field(default_factory=list)
    """What could not be given, and why."""


def rescore(folder: Path, reference: Path | None, registry: Registry) -> Rescored:
    """Everything that a run folder's records give; ``reference``: the retrained model's run.

    Raises:
        OptionError: there is no run, or the reference is of other rows, tasks or settings.
        ResultError: a file is damaged, or the run is of a part of its samples.
        MetricError: the records of a task are not its own, or give no finite value.
    """
    run, found = LoadedRun(folder, read_run(folder)), Rescored()
    require_whole(run)
    retrained = _open(reference) if reference is not None else None
    for name, task in run.result.tasks.items():
        if name not in registry.files:
            found.notes.append(f"{name}: no such task here; give its folder with --include-path")
            continue
        spec = registry.of_version(name, task.version)
        records = run.records(name)
        _again(spec, records, run, found)
        if isinstance(spec, LikelihoodTask) and retrained is not None:
            _against_reference(spec, records, run, retrained, found)
        if isinstance(spec, AnswersTask) and spec.about == "forget" and spec.false_answers:
            if retrained is None:
                found.notes.append(
                    f"{name}: no forget quality without --reference RUN_DIR, a run of the "
                    "retrained model"
                )
            else:
                require_comparable(run, retrained, [name])
                others = retrained.records(name)
                found.forget_quality[name] = {
                    mean: forget_quality(_ratios(records, mean), _ratios(others, mean))
                    for mean in get_args(Mean)
                }
    if retrained is not None and run_key(run) == run_key(retrained):
        found.notes.append("the reference is this very run: its forget quality is 1 by definition")
    _utility(run, found)
    _hold_imported(run, found)
    return found


def _open(path: Path) -> LoadedRun:
    found = open_reference(path)
    if found is None or isinstance(found, str):
        raise OptionError("--reference takes the run folder of the retrained model here")
    return LoadedRun(found.folder.path, found.result)


def _again(
    spec: TaskSpec, records: Sequence[SampleRecord], run: LoadedRun, found: Rescored
) -> None:
    """A task's figures, and where ``run.json`` or a record states others."""
    name, stated, imported = spec.task, run.task(spec.task), run.result.imported is not None
    for record in records:
        for figure, (theirs, ours) in spec.rescore(record, imported).items():
            if abs(ours - theirs) > _SAME:
                found.differences[f"{name}/{record.id}/{figure}"] = ours - theirs
    fresh = task_result(spec, records, stated.records_sha256, run.result.settings.seed)
    pairs: list[tuple[str, float | None, float | None]] = [("auc", fresh.auc, stated.auc)]
    if stated.auc is None:
        pairs.append((spec.headline, fresh.value, stated.value))
    attacks = stated.attacks or {}
    for attack, estimate in (fresh.attacks or {}).items():
        before = attacks.get(attack)
        pairs.append((f"auc_{attack}", estimate.auc, before.auc if before else None))
    pairs += [(figure, value, stated.scores.get(figure)) for figure, value in fresh.scores.items()]
    found.values[name] = {figure: ours for figure, ours, _ in pairs if ours is not None}
    for figure, value, states in pairs:
        if value is not None and states is not None and abs(value - states) > 100 * _SAME:
            found.differences[f"{name}/{figure}"] = value - states


def _against_reference(
    spec: LikelihoodTask,
    records: Sequence[SampleRecord],
    run: LoadedRun,
    retrained: LoadedRun,
    found: Rescored,
) -> None:
    """PrivLeak of every attack that both runs have, and the AUC of the one that takes a text's loss
    under the reference off its loss (Carlini et al. 2021, arXiv 2012.07805), near 0 where forgotten
    texts are told from holdout ones.
    """
    name = spec.task
    if name not in retrained.result.tasks:
        found.notes.append(f"{name}: the reference did not evaluate it: no attack against it")
        return
    require_comparable(run, retrained, [name])
    own, other = (
        {(r.split, r.id): r.scores for r in side if isinstance(r, LikelihoodRecord)}
        for side in (records, retrained.records(name))
    )
    every = [{*scores} for scores in (*own.values(), *other.values())]
    for attack in next(iter(own.values())):
        if not all(attack in each for each in every):
            found.notes.append(f"{name}: not every text has {attack}: no PrivLeak by it")
            continue
        mine, theirs = (
            auc(
                *(
                    [s[attack] for (of, _), s in side.items() if of == split]
                    for split in spec.asked_splits
                )
            )
            for side in (own, other)
        )
        if theirs > 0:
            found.values[name][f"privleak_{attack}"] = privleak(mine, theirs)
        else:
            found.notes.append(f"{name}: the reference's AUC of {attack} is 0: no PrivLeak by it")
    if not all("PPL" in each for each in every):
        found.notes.append(f"{name}: its texts have no loss: no attack against the reference")
        return
    less: dict[str, list[float]] = {split: [] for split in spec.asked_splits}
    for key, scores in own.items():
        less[key[0]].append(scores["PPL"] - other[key]["PPL"])
    sides = [less[split] for split in spec.asked_splits]
    found.values[name]["auc_against_reference"] = auc(*sides)


def _ratios(records: Sequence[SampleRecord], mean: Mean) -> list[float]:
    each = [facts_of(r, AnswerFacts) for r in records if isinstance(r, AnswerRecord)]
    return [
        truth_ratio(f.loss if f.true_loss is None else f.true_loss, f.false_losses, mean).ratio
        for f in each
    ]


def _utility(run: LoadedRun, found: Rescored) -> None:
    """TOFU's model utility, where a run has all that it is made of."""
    needed = list(dict.fromkeys(task for task, _ in UTILITY.values()))
    missing = [task for task in needed if task not in run.result.tasks]
    if missing:
        if len(missing) < len(needed):
            found.notes.append(f"no model utility without {', '.join(missing)}; evaluate them")
        return
    for part, (task, figure) in UTILITY.items():
        values = [_figure(record, run.task(task).metric, figure) for record in run.records(task)]
        found.parts[part], found.rows[part] = fmean(values), len(values)
    found.utility = harmonic_mean(list(found.parts.values()))


def _figure(record: SampleRecord, headline: str, figure: str) -> float:
    if isinstance(record, LikelihoodRecord) or (figure != headline and figure not in record.scores):
        raise MetricError(f"{record.task}: {record.id} has no {figure}")
    return record.score if figure == headline else record.scores[figure]


def _hold_imported(run: LoadedRun, found: Rescored) -> None:
    """What the imported files state of figures that are made of several tasks."""
    stated = run.result.imported.stated if run.result.imported else {}
    qualities = [quality["geometric"].p for quality in found.forget_quality.values()]
    leaks = [v[_HEADLINE] for v in found.values.values() if _HEADLINE in v]
    ours = {"model_utility": found.utility, "forget_quality": qualities[0] if qualities else None}
    ours["privleak"] = leaks[0] if leaks else None
    for name, value in ours.items():
        theirs = stated.get(f"tofu/{name}")
        same = _PERCENT if name == "privleak" else _SAME
        if value is not None and theirs is not None and abs(value - theirs) > same:
            found.differences[f"tofu/{name}"] = value - theirs


def rescored_json(found: Rescored) -> dict[str, Any]:
    """As ``--json`` writes it; what could not be given is absent."""
    qualities = {
        task: {mean: vars(quality) for mean, quality in each.items()}
        for task, each in found.forget_quality.items()
    }
    whole: dict[str, Any] = {"tasks": found.values, "differences": found.differences}
    if qualities:
        whole["forget_quality"] = qualities
    if found.utility is not None:
        parts = {n: {"mean": found.parts[n], "rows": found.rows[n]} for n in found.parts}
        whole["model_utility"] = {"value": found.utility, "parts": parts}
    return whole


def rescored_rows(found: Rescored) -> list[list[str]]:
    """A table's rows: what, its value, what it is made of."""
    rows: list[list[str]] = []
    for task, values in found.values.items():
        rows += [[task, name, f"{value:.4g}"] for name, value in values.items()]
    for task, each in found.forget_quality.items():
        for mean, quality in each.items():
            said = f"p {quality.p:.3g}, log10 p {quality.log10_p:.2f}"
            said += f", D {quality.statistic:.4f}, n {quality.n}"
            rows.append([task, f"forget quality ({mean} mean)", said])
    if found.utility is not None:
        rows.append(["tofu", "model utility", f"{found.utility:.4f}"])
        for name, value in found.parts.items():
            rows.append(["tofu", f"  {name}", f"{value:.4f}, n {found.rows[name]}"])
    return rows
